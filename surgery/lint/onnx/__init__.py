"""ONNX files of others, read without loading their weights."""
