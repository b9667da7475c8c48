"""One file a command of `surgery`, found by its name."""
