"""Files: staging, claims, atomic text, the cache, and what a disk refuses. No torch."""
