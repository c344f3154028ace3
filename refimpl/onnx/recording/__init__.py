"""The forward pass, recorded as an ONNX graph."""
