"""Perplexity, and answers to questions, on both paths."""
