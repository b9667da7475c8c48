"""Rules on what tracing and the compiler say: one file a rule."""
