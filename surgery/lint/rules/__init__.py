"""One rule a file; see `surgery.lint.base`."""
