"""The conformance suite: every decoder of transformers, tiny and random, through every operation."""
