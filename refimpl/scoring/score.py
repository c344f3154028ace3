"""The main job: experiment and signals of a model, ready to be turned into allocations."""

import time
from collections.abc import Iterable
from dataclasses import fields, replace
from hashlib import sha256
from itertools import chain
from typing import Any

import numpy as np

from refimpl.allocation.allocate import Allocation, allocate, base_only
from refimpl.allocation.request import (
    Noise,
    Perturbation,
    Probes,
    Request,
    probes_for,
    require_resolved,
)
from refimpl.allocation.scores import (
    Absorption,
    ProbedErrors,
    PrunedAt,
    Scores,
    Signals,
)
from refimpl.bases.base import Base
from refimpl.bases.uniform import UNIFORM
from refimpl.loading.files.documents import read_file
from refimpl.loading.samples import Tokens
from refimpl.method.absorption import absorption_coefficient
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.wanda import WANDA
from refimpl.running.settings import Settings, parse_memory
from refimpl.scoring.base_signals import MeasuredBases, before_squares, block_signals
from refimpl.scoring.experiment import (
    dense_squares,
    experiment,
    probing_bytes,
    work_list,
)
from refimpl.scoring.measurements import Measurements, Moments, wanda_moments
from refimpl.scoring.state_group import PrunedBlocks, probe_counts


def score(
    model: Model,
    tokens: Tokens,
    plan: Perturbation | None = None,
    request: Request | None = None,
    settings: Settings | None = None,
    *,
    bases: Iterable[str | Base] | None = None,
    **changes: Any,
) -> Scores:
    """Measure how each block's damage is absorbed or amplified by the blocks after it.

    Args:
        model: From `read_model`.
        tokens: Token ids and where they came from.
        plan: `Noise` or `Probes`; if None, noise at eta 0.01 for the correction absorption, else
            probes. Measured strength adds probes at two more sparsities, and perturbs
            no more samples than the precision of the allocation takes.
        request: Which base's signals to compute, at which allocation the pruning perturbation
            prunes, and whether the divergence is measured; if None, `Request()`, or without a
            correction if the plan is noise.
        settings: How it runs.
        bases: Bases beside the request's whose signals are measured, by name or as a `Base` of your
            own, so that allocations can be made from them; if None, those of this package that need
            the squares of inputs alone. None at all spares one more reading of the blocks.
        **changes: Fields of the settings to change, such as `dtype="float64"`.

    Returns:
        Drift, alignment and coefficients per block and eta, signals, and how they were made; the
        numbers are the same for every memory and number of threads, resumed or not.

    Raises:
        RefimplError: Tokens the model cannot read; NaN or Inf among the weights; activations
            beyond the dtype; a request that needs another perturbation.

    Source: arXiv:2606.15161; docs/explanation/method.md, sections 2, 3 and 6.
    """
    started, config = time.perf_counter(), model.config
    request = request or Request(
        correct=None if isinstance(plan, Noise) else "divergence"
    )
    plan = request.perturbation(plan)
    settings = replace(settings or Settings(), **changes)
    ids = checked_ids(tokens.ids, config)
    alike = (
        replace(request, base=UNIFORM, options={}) if request.record.needs else request
    )
    _pruned_at(
        config, {}, alike
    )  # so a request that cannot be served fails before the long part
    model.check_finite(settings.dtype)
    chosen = MeasuredBases.of(request, bases)
    beside, divergence = probing_bytes(config, plan), request.correct == "divergence"
    settings = replace(settings, memory=parse_memory(settings.memory, beside))
    with settings.open(model, _options(tokens, plan, request, chosen)) as resources:
        require_resolved(plan, resources.dtype)
        # Too little memory is refused before anything is measured.
        units = chain(*work_list(config, ids, plan, resources, divergence=divergence))
        resources.total = chosen.cost(config, len(ids)) + sum(
            x.cost(config) for x in units
        )
        resources.total += isinstance(plan, Probes) * len(ids) * config.num_blocks
        signals = before_squares(model, chosen, ids, resources)
        pruned_at, pruning = None, None
        if isinstance(
            plan, Probes
        ):  # which weights go depends on the dense model on all tokens
            moments = wanda_moments(
                dense_squares(model, ids, resources), len(ids), config
            )
            signals |= block_signals(
                model, chosen, "squares", resources, moments=moments
            )
            pruned_at = _pruned_at(config, signals, request)
            pruning = probed_blocks(config, pruned_at.linear_pruned, plan, moments)

        def scores_of(measured: Measurements) -> Scores:
            perturbed, dense = measured.ratios.shape[1], signals  # sequences
            if pruned_at is None:
                means = wanda_moments(measured.squares, perturbed, config)
                more = block_signals(model, chosen, "squares", resources, moments=means)
                dense = {**dense, **more}
            sweep = _sweep(measured, plan)
            return Scores(
                model=model.name,
                family=config.family,
                linears=config.linears,
                tokens=tokens.facts,
                plan=plan,
                sweep=sweep,
                sinks=measured.sinks,
                signals=dense,
                run=resources.run_since(started),
                pruned_at=pruned_at,
                probes=_probed(measured, pruning, plan, config),
                made_for={x.name: getattr(request, x.name) for x in fields(request)},
                measured_samples=perturbed,
                sink_share=measured.sink_share.mean(axis=0),
            )

        def precise(measured: Measurements) -> bool:
            errors = allocate(scores_of(measured), request).errors
            return errors is not None and errors.precision <= (plan.precision or 0)

        how: Any = {
            "divergence": divergence,
            "enough": precise if plan.precision else None,
        }
        return scores_of(experiment(model, ids, plan, resources, pruning, **how))


def recommended(
    model: Model,
    tokens: Tokens,
    sparsity: float,
    pruner: str | PrunerOptions = WANDA.name,
    settings: Settings | None = None,
    **changes: Any,
) -> tuple[Scores, Allocation]:
    """Measure a model and allocate as docs/study.md recommends, and `refimpl prune` does.

    Args:
        model: From `read_model`.
        tokens: Token ids and where they came from.
        sparsity: Fraction of all prunable weights to prune, in [0, 1].
        pruner: The pruner that will be used, by which blocks are probed; ADMM's by Wanda.
        settings: How it runs.
        **changes: Fields of the settings to change.

    Returns:
        The scores, and the allocation: uniform, corrected by the divergence with measured strength.

    Raises:
        RefimplError: As `score` raises it.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.loading.samples import random_tokens
        >>> tokens = random_tokens(264, 2, 16)
        >>> scores, allocation = recommended(read_model("fixtures/llama"), tokens, 0.5)
        >>> allocation.total_pruned
        14592
    """
    how = pruner if isinstance(pruner, PrunerOptions) else PrunerOptions(pruner)
    plan = probes_for(how)
    request = Request(sparsity=sparsity)
    settings = replace(settings or Settings(), **changes)
    scores = score(model, tokens, plan, request, settings, bases=())
    return scores, allocate(scores, request)


def probed_blocks(
    config: Config, base: Array, plan: Probes, moments: Moments
) -> PrunedBlocks:
    """What prunes a block alone, from weights to prune in the base allocation, [L, linears]."""
    counts = probe_counts(base, config.linear_sizes, plan.delta)
    of_squares = moments if plan.pruner_options.record.needs == "squares" else ()
    return PrunedBlocks(counts, plan.pruner_options, of_squares)


def _options(
    tokens: Tokens, plan: Perturbation, request: Request, chosen: MeasuredBases
) -> dict[str, Any]:
    """What finished units depend on, besides the model and the dtype."""
    base: list[Any] | None = None  # where blocks are pruned
    if isinstance(plan, Probes):
        at = request.pruned_at
        custom = at.file and sha256(read_file(at.file)).hexdigest()
        base = [at.record.name, dict(at.options), at.sparsity, at.lo, at.hi, custom]
    return {
        "command": "score",
        "tokens": tokens.sha256,
        "perturbation": vars(plan),
        "base": base,
        "signals": {name: options for name, (_, options) in chosen.bases.items()},
        "divergence": request.correct == "divergence",
    }


def _pruned_at(config: Config, signals: Signals, request: Request) -> PrunedAt:
    """Where the pruning perturbation prunes: the projected base, counted exactly."""
    at = request.pruned_at
    base = base_only(signals, at, config.linears)
    return PrunedAt(at.record.name, at.options, at.sparsity, base.linear_pruned)


def _sweep(measured: Measurements, plan: Perturbation) -> tuple[Absorption, ...]:
    """Means over draws and then sequences, one result per eta; of probes, at the base's counts."""
    results, kl = [], measured.divergence
    for i, eta in enumerate(plan.etas):
        drift = absorption_coefficient(measured.drift[i])
        alignment = absorption_coefficient(measured.alignment[i])
        divergence = (None, None) if kl is None else absorption_coefficient(kl[i])
        each = zip(
            *(x.T for x in absorption_coefficient(measured.ratios[i])), strict=True
        )
        coefficient, growth, passed = each  # and their errors
        steps, _ = absorption_coefficient(measured.steps[i])
        means = (
            *drift,
            *alignment,
            *coefficient,
            measured.left_out[i],
            steps,
            *growth,
            *passed,
        )
        results.append(Absorption(eta, *means, *divergence))
    return tuple(results)


def _probed(
    measured: Measurements,
    blocks: PrunedBlocks | None,
    plan: Perturbation,
    config: Config,
) -> ProbedErrors | None:
    """What probes measured, in the order of their sparsities."""
    kl, order = (
        measured.divergence,
        [1, 0, 2],
    )  # below, at and above, of [V, samples, draws, L]
    if (
        blocks is None
        or not isinstance(plan, Probes)
        or plan.delta is None
        or kl is None
    ):
        return None
    sparsity = blocks.counts.sum(axis=2)[order] / config.block_sizes
    return ProbedErrors(sparsity, np.moveaxis(kl[order, :, 0], 1, 0))
