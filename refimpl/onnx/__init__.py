"""The same computation elsewhere: recorded as an ONNX graph, for any runtime.

The libraries come with the extra `refimpl[onnx]`; whoever imports a module of this package without
it is told so.
"""

from importlib.util import find_spec

from refimpl.errors import RefimplError


def need(*libraries: str) -> None:
    """Refuse to go on without libraries of the extra.

    Args:
        libraries: Their names.

    Raises:
        RefimplError: One is not installed.

    Example:
        >>> need("onnx")
    """
    if missing := [name for name in libraries if find_spec(name) is None]:
        raise RefimplError(
            f"{' and '.join(missing)}: not installed",
            "the libraries for graphs",
            "pip install 'refimpl[onnx]'",
        )


need("onnx")
