"""A model's computation as an ONNX graph, run elsewhere; the extra `refimpl[onnx]` is needed."""

from refimpl.errors import need

need("onnx", "onnx")
