"""The forward pass and the experiment, recorded as ONNX graphs."""
