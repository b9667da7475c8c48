"""Models that are saved as remote code: one file each, named after its model type.

A file here is copied into the checkpoint, so it imports nothing from this package.
"""
