"""From scores to an allocation: base, correction, projection, counts."""

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from refimpl.allocation.request import Request
from refimpl.allocation.scores import (
    Absorption,
    AllocationErrors,
    AllocationNumbers,
    Scores,
    Signal,
    Signals,
)
from refimpl.arguments import integer, number_array, read_only, require
from refimpl.bases.base import BaseInputs
from refimpl.errors import RefimplError
from refimpl.method.absorption import jackknife, nan_mean
from refimpl.method.correction import LOG_LIMIT, centred_log, clipped_log, correction
from refimpl.method.equal_marginals import (
    Growth,
    equal_marginals,
    growth,
    own_rate_error,
)
from refimpl.method.projection import project
from refimpl.model.config import Linears, linear_sizes
from refimpl.model.ops import Array
from refimpl.pruners.counts import counts, split_count


@dataclass(frozen=True)
class Allocation(AllocationNumbers):
    """An allocation, with the request that it answers, and all its defaults."""

    request: Request


def allocate(
    scores: Scores, request: Request | None = None, which: int = 0, **changes: Any
) -> Allocation:
    """Make an allocation from scores: ``s = Project(base + c)``, and exact counts.

    Args:
        scores: From `score`, or read from its file.
        request: The request; if None, the one that the scores were made for.
        which: Index of the eta whose coefficients are used.
        **changes: Fields of `Request` to change. A new base resets its options and the
            correction, a new correction its strength; compat peer removes the correction.

    Returns:
        Sparsity and counts per block and linear.

    Raises:
        RefimplError: Signals or drifts the request needs were not computed; another base or
            sparsity than the pruning perturbation was made at; an infeasible budget; no request
            for scores from a file that names the file of their base, but does not hold it.

    Source: arXiv:2606.15161, claim 3; docs/explanation/method.md, sections 4 to 6.
    """
    require(which, integer(0, len(scores.sweep) - 1), "which")
    request = (
        request_for(scores, **changes)
        if request is None
        else replace(request, **changes)
    )
    base = base_allocation(scores.signals, request, scores.linears)
    _check_pruned(scores, request)
    u = (
        None
        if request.compat == "peer"
        else logarithms(scores.sweep[which], request.correct)
    )
    if not request.measured:
        return allocated(base, u, scores.linears, request)
    if (probes := scores.probes) is None:
        raise RefimplError(
            "measured strength of divergence: not measured at several sparsities in these scores",
            "scores made with --correct divergence, or a number",
            "run refimpl score again with --correct divergence, or use --strength 0.05",
        )

    def solve(some: Array) -> Allocation:
        grows = growth(nan_mean(some, axis=0), probes.sparsity)
        return allocated(base, u, scores.linears, request, grows)

    whole, each = solve(probes.divergences), probes.divergences
    without = (
        [solve(np.delete(each, i, axis=0)) for i in range(len(each))]
        if len(each) > 1
        else []
    )
    some, grows = without or [whole], whole.growth
    assert grows is not None  # the strength is measured
    own_rate = own_rate_error(grows, whole.base_sparsity, whole.corrected_sparsity)
    sparsity = jackknife([x.corrected_sparsity for x in some])
    rate = jackknife([x.growth.rate for x in some if x.growth is not None])
    return replace(whole, errors=AllocationErrors(len(some), sparsity, own_rate, rate))


def request_for(scores: Scores, **changes: Any) -> Request:
    """The request that scores were made for, with changes as of `allocate`."""
    made_for = dict(scores.made_for)
    base, made_base = changes.get("base"), made_for.get("base", "")
    if base is None and made_base is None:
        raise RefimplError(
            "no base, and the scores were made with an unknown one: a file, or another package's",
            "that file, or another base",
            "add `base=FILE`",
        )
    if changes.get("compat") == "peer":
        changes = {"correct": None} | changes
    if changes.get("correct") == "none":
        changes["correct"] = None
    if base in (None, made_base):
        changes["options"] = {
            **made_for.get("options", {}),
            **changes.get("options", {}),
        }
    else:
        made_for.pop("options", None)
        changes = changes if made_base is None else {"correct": None} | changes
    if changes.get("correct", made_for.get("correct")) != made_for.get("correct"):
        made_for.pop("strength", None)
    return Request(**(made_for | changes))


def base_only(signals: Signals, request: Request, linears: Linears) -> Allocation:
    """Make the allocation of a base alone, which needs no experiment: `correct` is None."""
    base = base_allocation(signals, request, linears)
    return allocated(base, None, linears, request)


def allocated(
    base: Array,
    u: Array | None,
    linears: Linears,
    request: Request,
    grows: Growth | None = None,
) -> Allocation:
    """Correct a base, [L] or [L, linears], by u or probes, project and count; peers only count."""
    sizes = linear_sizes(linears)
    share, projected, final = sizes / sizes.sum(axis=1, keepdims=True), base, base
    u = np.zeros(len(base)) if u is None else u
    if request.compat == "exact":
        units, exists = units_of(base, sizes)
        target, limits = request.sparsity, {"lo": request.lo, "hi": request.hi}
        projected, final = np.zeros((2, *base.shape))
        projected[exists] = project(base[exists], units, target, **limits)
        block_of_unit = np.nonzero(exists)[0]
        if grows is not None and grows.common_rate is not None:
            start, weights = _of_blocks(projected, share), sizes.sum(axis=1)
            top = np.maximum(start, np.minimum(request.hi, grows.reach))  # of each fit
            rate = np.full(len(base), grows.common_rate)
            best = equal_marginals(
                grows.level, rate, start, weights, target, request.lo, top
            )
            if base.ndim == 2:  # the linears of a block move together
                shifted = projected[exists] + (best - start)[block_of_unit]
                best = project(shifted, units, target, **limits)
        else:
            strength = 0.0 if request.correct is None else request.fixed_strength
            _, c = correction(u, strength, request.max_correction)
            best = project(base[exists] + c[block_of_unit], units, target, **limits)
        final[exists] = best
    per_linear = np.where(sizes > 0, final.reshape(len(base), -1), 0.0)
    if request.compat == "exact":
        pruned = linear_counts(final, sizes, request.sparsity)
    else:  # of every row, rounded down
        rows, columns = np.zeros((2, *sizes.shape), np.int64)
        for i, block in enumerate(linears):
            rows[i, : len(block)], columns[i, : len(block)] = zip(
                *block.values(), strict=True
            )
        pruned = rows * np.minimum((columns * per_linear).astype(np.int64), columns)
    base_sparsity, sparsity = (_of_blocks(x, share) for x in (projected, final))
    totals, clipped = (int(sizes.sum()), int(pruned.sum())), np.abs(u) >= LOG_LIMIT
    numbers = base_sparsity, sparsity, pruned.sum(axis=1), per_linear, pruned, clipped
    return Allocation(*totals, *numbers, grows, None, request)


def _of_blocks(units: Array, share: Array) -> Array:
    """Fraction pruned of each block, [L], from its own or those of its linears, [L, linears]."""
    return units if units.ndim == 1 else np.vecdot(units, share)


def base_allocation(signals: Signals, request: Request, linears: Linears) -> Array:
    """Make the base allocation, per block [L] or per linear [L, linears], not yet projected."""
    base, sizes = request.record, linear_sizes(linears)
    signal = _measured(signals.get(base.name), request) if base.needs else np.zeros(0)
    views = read_only(signal), tuple(map(MappingProxyType, linears)), read_only(sizes)
    options = MappingProxyType(request.options)
    asked = BaseInputs(*views, request.sparsity, options, request.compat)
    shapes = sizes.shape[:1], sizes.shape
    name, made = f"the allocation of base {base.name}", base.allocation(asked)
    return number_array(name, made, shapes, "iuf").astype(np.float64)


def linear_counts(sparsity: Array, sizes: Array, target: float) -> Array:
    """Weights to prune, [L, linears], by sparsity [L] or [L, linears]: ``round_half_even(S N)``."""
    (units, exists), pruned = units_of(sparsity, sizes), np.zeros(sizes.shape, np.int64)
    per_unit = counts(sparsity[exists], units, target)
    if sparsity.ndim == 2:
        pruned[exists] = per_unit
        return pruned
    for row, count, parts in zip(pruned, per_unit, sizes, strict=True):
        row[parts > 0] = split_count(int(count), parts[parts > 0])
    return pruned


def units_of(units: Array, sizes: Array) -> tuple[Array, Array]:
    """Weights of each unit, flat, and where units exist: blocks if `units` is [L], else linears."""
    weights = sizes if units.ndim == 2 else sizes.sum(axis=1)
    return weights[weights > 0], weights > 0


def _measured(signal: Signal | None, request: Request) -> Array:
    """The signal of a base; refuses one that was measured with other options, or not at all."""
    base = request.record
    measured, asked = (
        {} if signal is None else signal.options,
        base.of_signal(request.options),
    )
    if signal is not None and measured == asked:
        return signal.main
    other = {
        name: value for name, value in asked.items() if measured.get(name) != value
    }
    options = "".join(f" --base-option {name}={value}" for name, value in other.items())
    raise RefimplError(
        f"base {base.name}{options}: not in these scores",
        f"scores made with --base {base.name} and the same options",
        f"run refimpl score again with --base {base.name}{options}; to prune by the base alone, no "
        f"scores are needed: refimpl prune MODEL --allocation {base.name} --sparsity S",
    )


def _check_pruned(scores: Scores, request: Request) -> None:
    """Refuse to correct a base by errors that were measured by pruning to another one."""
    at = scores.pruned_at
    if at is None or request.correct is None:
        return
    planned = base_only(scores.signals, request.pruned_at, scores.linears)
    if not np.array_equal(planned.linear_pruned, at.linear_pruned):
        raise RefimplError(
            f"base {request.record.name} at {request.sparsity}: these scores were measured by "
            f"pruning at base {at.base}, sparsity {at.sparsity}",
            "the same base, options, limits and sparsity, or no correction",
            "run refimpl score again with the new base or sparsity, or use --correct none",
        )


def logarithms(absorption: Absorption, correct: str | None) -> Array:
    """The logarithms u that the correction is computed from, [L]."""
    if correct is None or correct == "absorption":
        return clipped_log(absorption.coefficient)
    if absorption.divergence is None or absorption.eta is not None:
        made = "" if absorption.eta is None else ", which were made with Gaussian noise"
        raise RefimplError(
            f"no divergence in these scores{made}",
            "scores made with the pruning perturbation and --correct divergence",
            "run refimpl score with --perturbation pruning --correct divergence",
        )
    return centred_log(absorption.divergence)
