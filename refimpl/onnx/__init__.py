"""Record a model's computation as an ONNX graph, run it elsewhere, and compare the results.

The libraries come with the extra `refimpl[onnx]`; without them, importing the package is an error
that says so.
"""

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
