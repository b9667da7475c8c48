"""The names of weights on disk and in memory, and what is between them."""
