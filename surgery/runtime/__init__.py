"""Runs what was exported: the manifest, the decode loop, and an engine a format."""
