"""onnxruntime: its record, export to ONNX, sessions, profiles, and int8 files in QDQ form."""
