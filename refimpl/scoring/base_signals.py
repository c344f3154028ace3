"""What bases are made of: activation signals of the dense model, and spectra of its weights."""

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.request import Request
from refimpl.allocation.scores import Signals
from refimpl.errors import RefimplError
from refimpl.model.floating_point import loud
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.token_ids import checked_ids
from refimpl.running.executors import LOCAL, Pool, open_pool
from refimpl.running.memory import parse_memory
from refimpl.running.provenance import identity
from refimpl.running.threads import Progress, Workers
from refimpl.scoring.dense_statistics import Profile, dense_squares, profile
from refimpl.scoring.spectra import spectra
from refimpl.storage.partial_results import PartialResults, partial_results
from refimpl.tokens import Tokens

ACTIVATIONS = ("owl", "dlp")  # bases that look at activations

Alphas = dict[str, Any]
"""The fields of `Signals` that AlphaPruning fills."""


def signals(
    model: Model,
    request: Request,
    tokens: Tokens | None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    executor: Executor | str | None = None,
    progress: Progress = lambda done, total: None,
    part: Path | None = None,
    resume: bool = False,
) -> Signals:
    """Compute what a base is made of, and nothing else: no experiment.

    Args:
        model: From `read_model`.
        request: The base and its options.
        tokens: Calibration tokens; None for bases that need none.
        dtype: float32, or float64 to certify.
        threads: Worker threads; one per core if None.
        memory: Memory for residual states; what is free, at most 2 GiB, if None.
        executor: Where the units run, as for `score`.
        progress: Called with the units of work done and in all.
        part: Where to keep what was found so far, or None; the caller removes it in the end.
        resume: Whether to take up what is there.

    Returns:
        Signals; NaN where the base does not look.

    Raises:
        RefimplError: NaN or Inf among the weights; a base that needs tokens without them.

    Source:
        docs/explanation/method.md, section 6 (peers).
    """
    config, options, budget = model.config, request.options, parse_memory(memory)
    m, statistic = float(options.get("m", 5.0)), str(options.get("statistic", "mean"))
    looks = request.base in ACTIVATIONS
    if looks and tokens is None:
        raise RefimplError(
            f"base {request.base} without tokens", "calibration tokens", "give tokens"
        )
    ids = np.zeros((0, 1), np.int64) if tokens is None else checked_ids(tokens.ids, config)
    total = len(ids) * config.num_blocks + spectra_cost(model, ids)
    done = 0.0

    def tick(units: float = 1.0) -> None:
        nonlocal done
        done += units
        progress(done, total)

    run = identity(model) | {
        "command": "signals",
        "tokens": tokens and tokens.sha256,
        "base": [request.base, dict(request.options)],
        "dtype": np.dtype(dtype).name,
    }
    with (
        loud(dtype),
        partial_results(part, run, resume) as kept,
        open_pool(executor, threads) as where,
        Workers(threads) as workers,
    ):
        found = alphas(model, ids, request, workers, tick, where, kept)
        if not looks:
            none = np.full(config.num_blocks, np.nan)
            return Signals(m, none, statistic, none, **found)
        squares = dense_squares(model, ids, workers, budget, dtype, tick, engine=where, part=kept)
        dense = profile(model, squares, len(ids), workers, dtype, m, statistic, engine=where)
        return signals_of(dense, found)


def signals_of(dense: Profile, found: Alphas) -> Signals:
    """Everything that bases are made from.

    Args:
        dense: The activation signals.
        found: From `alphas`.

    Returns:
        Both together.
    """
    owl, dlp = dense.owl_outlier_percent, dense.dlp_score
    return Signals(dense.owl_m, owl, dense.dlp_statistic, dlp, **found)


def alphas(
    model: Model,
    ids: Array,
    request: Request,
    workers: Workers,
    tick: Callable[..., None],
    where: Pool = LOCAL,
    part: PartialResults[str, Any] | None = None,
) -> Alphas:
    """Alphas of every linear, if the base asks for them.

    Args:
        model: The model.
        ids: Token ids, [N, S], whose length sets the unit of work.
        request: The base and its options.
        workers: Threads.
        tick: Called with the work done.
        where: Where the units run.
        part: Keeps what was found.

    Returns:
        Fields of `Signals`; none for another base.
    """
    if request.base != "alphapruning":
        return {}
    fit, xmin = str(request.options["fit"]), str(request.options["xmin"])
    each = spectra_cost(model, ids) / (model.config.num_blocks * len(model.config.linear_shapes))
    laws = spectra(model, workers, fit, xmin, lambda n: tick(each * n), engine=where, part=part)
    margins = [[np.nan if law.ks_margin is None else law.ks_margin for law in b] for b in laws]
    return {
        "alpha_fit": fit,
        "alpha_xmin": xmin,
        "alpha": np.array([[law.alpha for law in block] for block in laws]),
        "alpha_margin": np.array(margins),
    }


def spectra_cost(model: Model, ids: Array) -> float:
    """Work for all singular values: about ten times slower per operation than a block pass.

    Args:
        model: The model.
        ids: Token ids, [N, S].

    Returns:
        Block passes of one sequence.
    """
    config = model.config
    operations = sum(
        4 * out * width * min(out, width) for out, width in config.linear_shapes.values()
    )
    return 10 * config.num_blocks * operations / (2 * ids.shape[1] * config.block_size)
