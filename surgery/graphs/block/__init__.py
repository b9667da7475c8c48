"""One decoder block as an ONNX graph: how it is called, in which form, for which step."""
