"""NPU targets, and what a plan takes on one: memory, files, time."""
