"""Plans on a terminal."""
