"""Projectors: one file each, found by their word."""
