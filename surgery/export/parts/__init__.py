"""The parts of an export: how a model is split, traced, quantized and compiled."""
