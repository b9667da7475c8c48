"""Models assembled of a language model, a vision tower and a projector."""
