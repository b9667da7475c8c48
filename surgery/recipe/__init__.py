"""A recipe: its schema, its composition by Hydra, overrides, and forbidden content."""
