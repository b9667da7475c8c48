"""A plan: what a recipe means for one model, to the byte, before anything is done."""
