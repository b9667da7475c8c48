"""Plans that change the number of blocks, and the proof that the config can say so."""
