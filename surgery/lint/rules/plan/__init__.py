"""Rules on plans: one file a rule."""
