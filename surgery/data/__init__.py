"""Training data: one file for each format of records, and one for each step to a batch."""
