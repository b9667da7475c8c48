"""The operations of a recipe, one file each, and the edits that they return."""
