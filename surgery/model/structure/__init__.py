"""What a model is made of, found by its structure: blocks, their matrices, its family."""
