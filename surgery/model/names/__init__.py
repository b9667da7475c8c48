"""Names of weights on disk and in memory, and the conversion between them."""
