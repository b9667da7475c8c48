"""The conformance suite: every decoder of transformers, through every operation."""
