"""NumPy reference for perturbation-absorption scores, layer-wise sparsity, and pruning."""

TYPE_CHECKING = False  # as typing's, whose import takes as long as starting Python
if TYPE_CHECKING:
    from refimpl.api import *  # noqa: F403
else:

    def __dir__() -> list[str]:
        """The public names, also those that were not used yet."""
        return sorted(__getattr__("__all__"))  # type: ignore[arg-type]

    def __getattr__(name: str) -> object:
        """A public name, on first use: pytest imports this package whenever it starts."""
        if name.startswith("_") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module 'refimpl' has no attribute {name!r}")
        from importlib import (
            import_module,
        )  # the program shall be interruptible at once

        value = globals()[name] = getattr(import_module("refimpl.api"), name)
        return value
