"""The operations of a recipe, one file each."""
