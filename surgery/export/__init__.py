"""Exports of an adapter: parts, calibration, quantization, and one file a format."""
