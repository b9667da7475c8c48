"""Rules on ONNX graphs: one file a rule."""
