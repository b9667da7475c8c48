"""A recipe: its schema, its composition by Hydra, overrides, and what is refused in it."""
