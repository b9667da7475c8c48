"""A model before surgery: found, read as an `Anatomy`, fingerprinted, loaded."""
