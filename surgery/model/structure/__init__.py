"""Inspect a torch model by its structure: its blocks, their matrices, its family."""
