"""From a plan to the ONNX graphs of its distinct blocks, one step each, of static shape."""
