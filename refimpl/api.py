"""What `import refimpl` offers; imported on first use, so that the name alone costs nothing."""

from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import Evaluation, evaluate
from refimpl.explanation.explain import Explanation, explain
from refimpl.jobs.allocate import Allocation, allocate
from refimpl.jobs.estimate import Estimate, estimate
from refimpl.jobs.inspection import Inspection, inspect
from refimpl.jobs.prune import Pruning, prune
from refimpl.jobs.request import Request
from refimpl.jobs.score import score
from refimpl.jobs.scores import Scores
from refimpl.method.perturbation import Perturbation
from refimpl.model.checkpoint import Model, read_model
from refimpl.model.forward import Forward, forward
from refimpl.pruning.decision import Pruner
from refimpl.pruning.pattern import Pattern
from refimpl.version import SPEC, __version__

__all__ = [
    "SPEC",
    "Allocation",
    "Estimate",
    "Evaluation",
    "Explanation",
    "Forward",
    "Inspection",
    "Model",
    "Pattern",
    "Perturbation",
    "Pruner",
    "Pruning",
    "RefimplError",
    "Request",
    "Scores",
    "__version__",
    "allocate",
    "estimate",
    "evaluate",
    "explain",
    "forward",
    "inspect",
    "prune",
    "read_model",
    "score",
]
