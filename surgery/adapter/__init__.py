"""The adapter folder: written disk to disk, applied to a loaded model, saved, loaded, compared."""
