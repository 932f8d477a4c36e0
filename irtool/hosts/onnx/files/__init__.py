"""An ONNX file on its way to a program: read, checked, repaired, normalized."""
