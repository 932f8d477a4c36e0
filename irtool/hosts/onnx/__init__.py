"""The ONNX host: model files read into the graph view, evaluated and edited."""
