"""What runs an export: one file each, found by the word of its exporter."""
