"""Data for training: one file for each form of a record, and one for each step to a batch."""
