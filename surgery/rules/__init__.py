"""One rule a file; see `surgery.rule`."""
