"""Training by a recipe: stages, rates, checkpoints, the log."""
