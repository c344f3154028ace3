"""A model's computation as an ONNX graph, run elsewhere; the extra `refimpl[onnx]` is needed."""

from importlib.util import find_spec

from refimpl.errors import RefimplError


def need(*libraries: str) -> None:
    """Refuse to continue if one of the extra's libraries is not installed."""
    if missing := [name for name in libraries if find_spec(name) is None]:
        raise RefimplError(
            f"{' and '.join(missing)}: not installed",
            "the libraries of the extra refimpl[onnx]",
            "pip install 'refimpl[onnx]'",
        )


need("onnx")
