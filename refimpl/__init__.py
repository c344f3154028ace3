"""NumPy reference for perturbation-absorption scores and layer-wise sparsity allocation."""

from refimpl.errors import RefimplError
from refimpl.jobs.allocate import Allocation, allocate
from refimpl.jobs.request import Request
from refimpl.jobs.score import score
from refimpl.jobs.scores import Scores
from refimpl.method.perturbation import Perturbation
from refimpl.model.checkpoint import Model, read_model
from refimpl.model.forward import Forward, forward
from refimpl.version import __version__

__all__ = [
    "Allocation",
    "Forward",
    "Model",
    "Perturbation",
    "RefimplError",
    "Request",
    "Scores",
    "__version__",
    "allocate",
    "forward",
    "read_model",
    "score",
]
