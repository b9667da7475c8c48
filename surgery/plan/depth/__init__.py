"""Plans that change the number of blocks, and the check that a config can express the result."""
