"""Training by a recipe: stages, learning rates, checkpoints, the log."""
