"""The adapter folder: made disk to disk, applied to a loaded model, saved, opened, compared."""
