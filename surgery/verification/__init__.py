"""Checks that an adapter is what its plan says."""
