"""Qualcomm's own compiler and emulator of the Hexagon NPU, run on this machine.

They come with the package `onnxruntime-qnn`, which the user installs as the extra `snapdragon`.
"""
