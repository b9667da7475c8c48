"""Formats of records, one file each."""
