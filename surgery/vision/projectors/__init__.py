"""Projectors, one file each, found by name."""
