"""The main job: experiment and signals of a model, ready to be turned into allocations."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.jobs.allocate import base_counts
from refimpl.jobs.execution import Progress, Workers, parse_memory
from refimpl.jobs.experiment import experiment, head_cost
from refimpl.jobs.measurements import Experiment, Measurements, addresses
from refimpl.jobs.profile import Profile, dense_squares, profile, spectra, wanda_pruned
from refimpl.jobs.request import Request
from refimpl.jobs.run import run_since, token_facts
from refimpl.jobs.scores import Absorption, PrunedAt, Scores, Signals
from refimpl.method.absorption import absorption_coefficient, known_mean
from refimpl.method.perturbation import Perturbation
from refimpl.model.arithmetic import loud
from refimpl.model.checkpoint import Model
from refimpl.model.forward import Weights
from refimpl.model.ids import checked_ids
from refimpl.model.ops import Array
from refimpl.tokens import Tokens

ACTIVATIONS = ("owl", "dlp")  # bases that look at activations


def score(
    model: Model,
    tokens: Tokens,
    plan: Perturbation | None = None,
    request: Request | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    runtime: Experiment = experiment,
    progress: Progress = lambda done, total: None,
) -> Scores:
    """Measure how each block's damage is absorbed or amplified by the blocks after it.

    Args:
        model: From `read_model`.
        tokens: Token ids and where they came from.
        plan: The perturbation; Gaussian noise at eta 0.01 if None.
        request: Which base's signals to compute, at which allocation the pruning perturbation
            prunes, and whether the divergence is measured.
        dtype: float32, or float64 to certify.
        threads: Worker threads; one per core if None.
        memory: Memory for residual states, such as "1G"; what is free, at most 2 GiB, if None.
        runtime: What runs the experiment: NumPy, or `refimpl.onnx.runtime.on_onnxruntime(...)`.
        progress: Called with the units of work done and in all.

    Returns:
        Drift, alignment and coefficients per block and eta, signals, and how they were made.

    Raises:
        RefimplError: Tokens the model cannot read; NaN or Inf among the weights; activations
            beyond the dtype; a request that needs another perturbation.

    Source:
        arXiv:2606.15161; docs/explanation/method.md, sections 2, 3 and 6.
    """
    plan, request = plan or Perturbation(), request or Request()
    started, config = time.perf_counter(), model.config
    ids, budget = checked_ids(tokens.ids, config), parse_memory(memory)
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise RefimplError(f"dtype {dtype}", "float32 or float64", "choose one of these")
    if request.correct in ("arrival", "divergence") and plan.kind != "pruning":
        raise RefimplError(
            f"the {request.correct} correction with Gaussian noise",
            "the pruning perturbation, whose error is the one that pruning makes",
            "add --perturbation pruning, or use --correct absorption",
        )
    model.check_finite(dtype)
    _refuse_early(model, request)
    before, after = _costs(model, ids, plan, request)
    done = 0.0

    def tick(units: float = 1.0) -> None:
        nonlocal done
        done += units
        progress(done, before + after)

    with loud(dtype), Workers(threads) as workers:

        def dense(squares: Sequence[Mapping[str, Array]]) -> Profile:
            options = request.options
            m, statistic = float(options.get("m", 5.0)), str(options.get("statistic", "mean"))
            return profile(model, squares, len(ids), workers, budget, dtype, m, statistic)

        alphas = _alphas(model, ids, request, workers, tick)
        pruned_at, pruned = None, None
        if plan.kind == "pruning":  # which weights go depends on the dense model on all tokens
            known = dense(dense_squares(model, ids, workers, budget, dtype, tick))
            pruned_at = _pruned_at(model, _signals(known, alphas), request)
            names = tuple(config.linear_shapes)
            by_block = pruned_at.linear_pruned.tolist()

            def pruned(block: int, weights: Weights) -> Weights:
                counts = dict(zip(names, by_block[block], strict=True))
                return wanda_pruned(weights, known.moments[block], counts, workers)

        found = runtime(
            model,
            ids,
            plan,
            workers,
            budget,
            dtype,
            pruned,
            divergence=request.correct == "divergence",
            progress=lambda done, total: progress(before + done, before + total),
        )
        signals = _signals(dense(found.squares), alphas)
    return Scores(
        model=model.name,
        family=config.family,
        linears=config.linear_shapes,
        num_blocks=config.num_blocks,
        tokens=token_facts(tokens),
        plan=plan,
        sweep=_sweep(found, plan),
        sinks=found.sinks,
        signals=signals,
        run=run_since(started, dtype, workers, budget, found.engine),
        pruned_at=pruned_at,
    )


def signals(
    model: Model,
    request: Request,
    tokens: Tokens | None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    progress: Progress = lambda done, total: None,
) -> Signals:
    """Compute what a base is made of, and nothing else: no experiment.

    Args:
        model: From `read_model`.
        request: The base and its options.
        tokens: Calibration tokens; None for bases that need none.
        dtype: float32, or float64 to certify.
        threads: Worker threads; one per core if None.
        memory: Memory for residual states; what is free, at most 2 GiB, if None.
        progress: Called with the units of work done and in all.

    Returns:
        Signals; NaN where the base does not look.

    Raises:
        RefimplError: NaN or Inf among the weights; a base that needs tokens without them.

    Source:
        docs/explanation/method.md, section 6 (peers).
    """
    config, options, budget = model.config, request.options, parse_memory(memory)
    m, statistic = float(options.get("m", 5.0)), str(options.get("statistic", "mean"))
    ids = np.zeros((0, 1), np.int64) if tokens is None else checked_ids(tokens.ids, config)
    total = len(ids) * config.num_blocks + _spectra_cost(model, ids)
    done = 0.0

    def tick(units: float = 1.0) -> None:
        nonlocal done
        done += units
        progress(done, total)

    with loud(dtype), Workers(threads) as workers:
        alphas = _alphas(model, ids, request, workers, tick)
        if request.base not in ACTIVATIONS:
            none = np.full(config.num_blocks, np.nan)
            return Signals(m, none, statistic, none, **alphas)
        if tokens is None:
            raise RefimplError(
                f"base {request.base} without tokens", "calibration tokens", "give tokens"
            )
        squares = dense_squares(model, ids, workers, budget, dtype, tick)
        dense = profile(model, squares, len(ids), workers, budget, dtype, m, statistic)
        return _signals(dense, alphas)


Alphas = dict[str, Any]
"""The fields of `Signals` that AlphaPruning fills."""


def _alphas(
    model: Model, ids: Array, request: Request, workers: Workers, tick: Callable[..., None]
) -> Alphas:
    """Alphas of every linear, if the base asks for them."""
    if request.base != "alphapruning":
        return {}
    fit, xmin = str(request.options["fit"]), str(request.options["xmin"])
    each = _spectra_cost(model, ids) / (model.config.num_blocks * len(model.config.linear_shapes))
    laws = spectra(model, workers, fit, xmin, partial(tick, each))
    margins = [[np.nan if law.ks_margin is None else law.ks_margin for law in b] for b in laws]
    return {
        "alpha_fit": fit,
        "alpha_xmin": xmin,
        "alpha": np.array([[law.alpha for law in block] for block in laws]),
        "alpha_margin": np.array(margins),
    }


def _signals(dense: Profile, alphas: Alphas) -> Signals:
    """Everything that bases are made from."""
    owl, dlp = dense.owl_outlier_percent, dense.dlp_score
    return Signals(dense.owl_m, owl, dense.dlp_statistic, dlp, **alphas)


def _refuse_early(model: Model, request: Request) -> None:
    """Refuse, before the long part, a base that cannot be made: signals all alike stand in."""
    config, options = model.config, request.options
    blocks = np.ones(config.num_blocks)
    signals = Signals(
        float(options.get("m", 5.0)),
        blocks,
        str(options.get("statistic", "mean")),
        blocks,
        str(options.get("fit")),
        str(options.get("xmin")),
        np.ones((config.num_blocks, len(config.linear_shapes))),
    )
    _pruned_at(model, signals, request)


def _costs(model: Model, ids: Array, plan: Perturbation, request: Request) -> tuple[float, float]:
    """Work for the signals, and about that of the experiment, in block passes of one sequence."""
    blocks, states = model.config.num_blocks, len(addresses(len(ids), 1, plan))
    signals: float = len(ids) * blocks if plan.kind == "pruning" else 0
    if request.base == "alphapruning":
        signals += _spectra_cost(model, ids)
    heads = head_cost(model.config) if request.correct == "divergence" else 0.0
    clean, pushed = blocks + heads, blocks * ((blocks + 1) / 2 + heads)
    return signals, len(ids) * clean + states * pushed


def _spectra_cost(model: Model, ids: Array) -> float:
    """Work for all singular values: about ten times slower per operation than a block pass."""
    config = model.config
    operations = sum(
        4 * out * width * min(out, width) for out, width in config.linear_shapes.values()
    )
    return 10 * config.num_blocks * operations / (2 * ids.shape[1] * config.block_size)


def _pruned_at(model: Model, signals: Signals, request: Request) -> PrunedAt:
    """Where the pruning perturbation prunes: the projected base, counted exactly."""
    exact = replace(request, compat="exact", correct=None)
    pruned = base_counts(signals, exact, model.config.linear_shapes, model.config.num_blocks)
    return PrunedAt(request.base, request.options, request.sparsity, pruned)


def _sweep(found: Measurements, plan: Perturbation) -> tuple[Absorption, ...]:
    """Means over draws and then sequences, one result per eta."""

    def mean(x: Array) -> Array:
        return known_mean(known_mean(x, axis=1), axis=0)

    results = []
    for i, eta in enumerate(plan.eta if plan.kind == "gaussian" else (None,)):
        coefficient, stderr = absorption_coefficient(found.ratios[i])
        results.append(
            Absorption(
                eta,
                mean(found.drift[i]),
                mean(found.alignment[i]),
                coefficient,
                stderr,
                found.left_out[i],
                None if found.divergence is None else mean(found.divergence[i]),
            )
        )
    return tuple(results)
