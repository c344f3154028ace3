"""What `import refimpl` offers; imported on first use, so that the name alone costs nothing."""

from types import FunctionType

from refimpl import plot as plot  # a module, so not in __all__
from refimpl.allocation.allocate import Allocation, allocate
from refimpl.allocation.request import Noise, Probes, Request
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import read_scores
from refimpl.arguments import checked
from refimpl.bases.base import Base
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import Evaluation, evaluate
from refimpl.explanation.explain import Explanation, explain
from refimpl.loading.checkpoint import read_model
from refimpl.loading.samples import random_tokens
from refimpl.loading.text import text_tokens
from refimpl.model.forward import Forward, forward
from refimpl.model.model import Model
from refimpl.pruners.counts import Pattern
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import Pruner
from refimpl.pruning.prune import prune
from refimpl.pruning.record import Inspection, Pruning, inspect, masks
from refimpl.running.settings import Settings
from refimpl.scoring.score import recommended, score
from refimpl.version import SPEC, __version__

__all__ = [
    "SPEC",
    "Allocation",
    "Base",
    "Evaluation",
    "Explanation",
    "Forward",
    "Inspection",
    "Model",
    "Noise",
    "Pattern",
    "Probes",
    "Pruner",
    "PrunerOptions",
    "Pruning",
    "RefimplError",
    "Request",
    "Scores",
    "Settings",
    "__version__",
    "allocate",
    "evaluate",
    "explain",
    "forward",
    "inspect",
    "masks",
    "prune",
    "random_tokens",
    "read_model",
    "read_scores",
    "recommended",
    "score",
    "text_tokens",
]

for _name, _public in [*globals().items()]:  # calls within the package are not checked
    if _name in __all__ and isinstance(_public, FunctionType):
        globals()[_name] = checked(_public)
