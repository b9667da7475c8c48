"""A plan: the edits of a recipe on one model, with exact counts, before anything is executed."""
