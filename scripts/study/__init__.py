"""The paper's study in small: `make study`; docs/how-to/study.md says what it does."""
