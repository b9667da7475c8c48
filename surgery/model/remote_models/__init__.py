"""Models that a checkpoint carries as code: one file each, named after its model type.

A file here is copied into the checkpoint, so it imports nothing of this package.
"""
