"""The main job: experiment and signals of a model, ready to be turned into allocations."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import base_only
from refimpl.allocation.request import BASES, Request
from refimpl.allocation.scores import Absorption, PrunedAt, Scores, Signals
from refimpl.errors import RefimplError
from refimpl.method.absorption import absorption_coefficient, known_mean
from refimpl.method.perturbation import Perturbation
from refimpl.model.floating_point import loud
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.token_ids import checked_ids
from refimpl.running.executors import open_pool
from refimpl.running.memory import parse_memory
from refimpl.running.provenance import identity, run_since, token_facts
from refimpl.running.threads import Progress, Workers
from refimpl.scoring.base_signals import alphas, signals, signals_of, spectra_cost
from refimpl.scoring.dense_statistics import Profile, dense_squares, profile
from refimpl.scoring.experiment import experiment
from refimpl.scoring.journey import head_cost
from refimpl.scoring.measurements import Experiment, Measurements, addresses
from refimpl.scoring.pruned_block import Thinning
from refimpl.storage.partial_results import partial_results
from refimpl.tokens import Tokens

__all__ = ["score", "signals"]


def score(
    model: Model,
    tokens: Tokens,
    plan: Perturbation | None = None,
    request: Request | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    executor: Executor | str | None = None,
    runtime: Experiment | None = None,
    progress: Progress = lambda done, total: None,
    part: Path | None = None,
    resume: bool = False,
) -> Scores:
    """Measure how each block's damage is absorbed or amplified by the blocks after it.

    Args:
        model: From `read_model`.
        tokens: Token ids and where they came from.
        plan: The perturbation; Gaussian noise at eta 0.01 if None.
        request: Which base's signals to compute, at which allocation the pruning perturbation
            prunes, and whether the divergence is measured.
        dtype: float32, or float64 to certify.
        threads: Worker threads, or processes; one per core if None.
        memory: Memory for residual states, such as "1G"; what is free, at most 2 GiB, if None.
        executor: Where the units run, see `running.executors.engine`: threads of this process if
            None, "processes", "dask=ADDRESS", "mpi", or any `concurrent.futures.Executor`.
        runtime: What runs the experiment: NumPy if None, or
            `refimpl.onnx.runtime.on_onnxruntime(...)`.
        progress: Called with the units of work done and in all.
        part: Where to keep what was found so far, or None; the caller removes it in the end.
        resume: Whether to take up what is there.

    Returns:
        Drift, alignment and coefficients per block and eta, signals, and how they were made; the
        numbers are the same for every executor, memory and number of threads, resumed or not.

    Raises:
        RefimplError: Tokens the model cannot read; NaN or Inf among the weights; activations
            beyond the dtype; a request that needs another perturbation; a part of another run;
            an executor or a part with another runtime.

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
    if runtime is not None and (executor not in (None, "threads") or part is not None):
        raise RefimplError(
            "an executor, or a part to keep, with another runtime",
            "--runtime numpy, whose work is made of units",
            "leave --executor and --resume away",
        )
    model.check_finite(dtype)
    _refuse_early(model, request)
    before, after = _costs(model, ids, plan, request)
    done = 0.0

    def tick(units: float = 1.0) -> None:
        nonlocal done
        done += units
        progress(done, before + after)

    with (
        loud(dtype),
        partial_results(part, _identity(model, tokens, plan, request, dtype), resume) as kept,
        open_pool(executor, threads) as where,
        Workers(threads) as workers,
    ):

        def dense(squares: Sequence[Mapping[str, Array]]) -> Profile:
            options = request.options
            m, statistic = float(options.get("m", 5.0)), str(options.get("statistic", "mean"))
            return profile(model, squares, len(ids), workers, dtype, m, statistic, engine=where)

        spectral = alphas(model, ids, request, workers, tick, where, kept)
        pruned_at, pruned = None, None
        if plan.kind == "pruning":  # which weights go depends on the dense model on all tokens
            known = dense(
                dense_squares(model, ids, workers, budget, dtype, tick, engine=where, part=kept)
            )
            pruned_at = _pruned_at(model, signals_of(known, spectral), request)
            counts = [
                dict(zip(config.linear_shapes, at, strict=True))
                for at in pruned_at.linear_pruned.tolist()
            ]
            pruned = Thinning(known.moments, tuple(counts))
        found = (runtime or partial(experiment, engine=where, part=kept))(
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
        known_signals = signals_of(dense(found.squares), spectral)
    return Scores(
        model=model.name,
        family=config.family,
        linears=config.linear_shapes,
        num_blocks=config.num_blocks,
        tokens=token_facts(tokens),
        plan=plan,
        sweep=_sweep(found, plan),
        sinks=found.sinks,
        signals=known_signals,
        run=run_since(started, dtype, workers, budget, found.engine),
        pruned_at=pruned_at,
    )


def _identity(
    model: Model, tokens: Tokens, plan: Perturbation, request: Request, dtype: npt.DTypeLike
) -> dict[str, Any]:
    """Everything that what is kept depends on."""
    at: list[Any] = []
    if plan.kind == "pruning":
        custom = Path(request.base) if request.base not in BASES else None
        at = [request.sparsity, custom and sha256(custom.read_bytes()).hexdigest()]
    return identity(model) | {
        "command": "score",
        "tokens": tokens.sha256,
        "perturbation": asdict(plan),
        "base": [request.base, dict(request.options), *at],
        "divergence": request.correct == "divergence",
        "dtype": np.dtype(dtype).name,
    }


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
    blocks, states = model.config.num_blocks, addresses(len(ids), model.config.num_blocks, plan)
    signals: float = len(ids) * blocks if plan.kind == "pruning" else 0
    if request.base == "alphapruning":
        signals += spectra_cost(model, ids)
    heads = head_cost(model.config) if request.correct == "divergence" else 0.0
    pushed = sum(blocks - a.block + heads for a in states)
    return signals, len(ids) * (blocks + heads) + pushed


def _pruned_at(model: Model, signals: Signals, request: Request) -> PrunedAt:
    """Where the pruning perturbation prunes: the projected base, counted exactly."""
    exact = replace(request, compat="exact", correct=None)
    base = base_only(signals, exact, model.config.linear_shapes, model.config.num_blocks)
    return PrunedAt(request.base, request.options, request.sparsity, base.linear_pruned)


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
