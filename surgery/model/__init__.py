"""The base model: find its files, read its `Anatomy`, fingerprint it, load it."""
