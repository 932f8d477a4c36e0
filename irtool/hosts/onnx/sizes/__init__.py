"""Sizes in an ONNX program: fixed, computed, or data."""
