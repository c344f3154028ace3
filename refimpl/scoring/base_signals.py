"""What bases are made of: activation signals of the dense model, and spectra of its weights."""

from typing import Any

import numpy as np

from refimpl.allocation.request import Request
from refimpl.allocation.scores import Signals
from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.token_ids import checked_ids
from refimpl.running.settings import Resources, Settings
from refimpl.scoring.activation_signals import activation_signals
from refimpl.scoring.dense_statistics import Moments, dense_squares, wanda_moments
from refimpl.scoring.reconstruction import error_cost, lsa_errors
from refimpl.scoring.spectra import power_laws, spectra_cost
from refimpl.tokens import Tokens
from refimpl.tokens.imatrix import Imatrix

OF_SQUARES = ("owl", "dlp")  # bases made of the squares of inputs
OF_TOKENS = (*OF_SQUARES, "lsa")  # all bases that look at inputs

Asked = dict[str, Any]
"""The fields of `Signals` that are computed only for a base that asks for them."""


def signals(
    model: Model,
    request: Request,
    tokens: Tokens | Imatrix | None,
    settings: Settings | None = None,
) -> Signals:
    """Compute what a base is made of, without an experiment: NaN for signals it does not need.

    Args:
        model: From `read_model`.
        request: The base and its options.
        tokens: Calibration tokens, or an importance matrix; None for bases that need none.
        settings: What it runs with; only the dtype changes the numbers.

    Raises:
        RefimplError: NaN or Inf among the weights; a base without the tokens that it needs; too
            little memory for LSA.
    """
    settings = settings or Settings()
    config = model.config
    if request.base in OF_TOKENS and tokens is None:
        raise RefimplError(
            f"base {request.base} without tokens", "calibration tokens", "pass tokens"
        )
    if request.base == "lsa" and isinstance(tokens, Imatrix):
        raise RefimplError(
            "base lsa with an importance matrix, which holds the squares of inputs",
            "calibration tokens: LSA needs the products of inputs with one another",
            "omit the importance matrix, or use base owl or dlp",
        )
    ids = np.zeros((0, 1), np.int64)
    if isinstance(tokens, Tokens):
        ids = checked_ids(tokens.ids, config)
    run = {
        "command": "signals",
        "tokens": tokens and tokens.sha256,
        "base": [request.base, dict(request.options)],
        "dtype": np.dtype(settings.dtype).name,
    }
    with settings.open(model, run) as resources:
        squares = request.base in OF_SQUARES
        resources.total = squares * len(ids) * config.num_blocks
        resources.total += asked_cost(config, len(ids), ids.shape[1], request)
        asked, moments = asked_signals(model, request, ids, resources), None
        if isinstance(tokens, Imatrix):
            moments = wanda_moments(tokens.squares, 1, config)
        elif squares:
            moments = wanda_moments(dense_squares(model, ids, resources), len(ids), config)
        return signals_of(model, moments, asked, request, resources)


def signals_of(
    model: Model, moments: Moments | None, asked: Asked, request: Request, resources: Resources
) -> Signals:
    """What bases are made of, from Wanda's statistic (None: NaN for OWL and DLP) and others."""
    m, statistic = float(request.options.get("m", 5.0)), request.options.get("statistic", "mean")
    owl = dlp = np.full(model.config.num_blocks, np.nan)
    if moments is not None:
        owl, dlp = activation_signals(model, moments, m, str(statistic), resources)
    return Signals(m, owl, str(statistic), dlp, **asked)


def asked_cost(config: Config, sequences: int, length: int, request: Request) -> float:
    """Cost of `asked_signals` in block passes of one sequence."""
    if request.base == "alphapruning":
        return spectra_cost(config, length)
    if request.base != "lsa":
        return 0.0
    each = error_cost(config, sequences, length, int(request.options["block"]))
    return config.num_blocks * (sequences + each)


def asked_signals(model: Model, request: Request, ids: Array, resources: Resources) -> Asked:
    """Alphas of every linear, or LSA's errors, if the base asks for them; from ids [N, S]."""
    if request.base == "lsa":
        group = int(request.options["block"])
        return {"lsa_block": group, "lsa_error": lsa_errors(model, ids, group, resources)}
    return alphas_of(model, request, ids.shape[1], resources)


def alphas_of(model: Model, request: Request, length: int, resources: Resources) -> Asked:
    """Alphas of every linear if the base asks for them; progress in passes of `length` tokens."""
    if request.base != "alphapruning":
        return {}
    config, fit, xmin = model.config, str(request.options["fit"]), str(request.options["xmin"])
    each = spectra_cost(config, length) / np.count_nonzero(config.linear_sizes)
    laws = power_laws(model, fit, xmin, resources, each)
    alpha, margin = np.full((2, *config.linear_sizes.shape), np.nan)
    for i, block in enumerate(laws):
        alpha[i, : len(block)] = [law.alpha for law in block]
        margin[i, : len(block)] = [
            np.nan if law.ks_margin is None else law.ks_margin for law in block
        ]
    return {"alpha_fit": fit, "alpha_xmin": xmin, "alpha": alpha, "alpha_margin": margin}
