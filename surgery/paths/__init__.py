"""The text and the multimodal path of a model in memory, and what switches between them."""
