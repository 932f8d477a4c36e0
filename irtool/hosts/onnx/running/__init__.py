"""An ONNX program run: whole, node by node, side by side."""
