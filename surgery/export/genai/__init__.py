"""What the folder of an export for ONNX Runtime GenAI is made of."""
