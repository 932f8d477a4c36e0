"""OpenVINO: its record, sessions and profiles. It reads ONNX files, float and int8, as they are."""
