"""`scores.json`: everything that was found and how, enough to make any allocation again."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.scores import Absorption, Scores

FORMAT = 1


def document(scores: Scores, allocations: tuple[Allocation, ...]) -> dict[str, Any]:
    """Scores and their allocations as one JSON document.

    Args:
        scores: What was found.
        allocations: One per eta.

    Returns:
        The document: numbers, strings, lists and objects; unknown numbers are null.
    """
    first, plan = scores.sweep[0], scores.plan
    head: dict[str, Any] = {
        "format": FORMAT,
        "model": scores.model,
        "family": scores.family,
        "num_blocks": scores.num_blocks,
        "eta": first.eta,
        "seed": plan.seed,
        "dtype": scores.run.dtype,
        "perturbation": plan.kind,
        "noise_scale": plan.noise_scale,
        "noise_shape": plan.noise_shape,
        "norm": plan.norm,
        "sink": plan.sink,
        "draws": plan.draws,
        "subset": plan.subset,
        "budget_minutes": scores.budget_minutes,
        "tokens": asdict(scores.tokens),
        "linears": {name: list(shape) for name, shape in scores.linears.items()},
        **request_fields(allocations[0]),
        "perturbed_at": None
        if scores.pruned_at is None
        else {**asdict(scores.pruned_at), "linear_pruned": scores.pruned_at.linear_pruned.tolist()},
        "signal_options": {
            "owl_m": scores.signals.owl_m,
            "dlp_statistic": scores.signals.dlp_statistic,
            "alpha_fit": scores.signals.alpha_fit,
            "alpha_xmin": scores.signals.alpha_xmin,
        },
        "run": {**asdict(scores.run), "versions": dict(scores.run.versions)},
    }
    head["blocks"] = block_rows(scores, first, allocations[0])
    if len(scores.sweep) > 1:
        head["sweep"] = [
            {
                "eta": found.eta,
                **allocation_totals(allocation),
                "blocks": block_rows(scores, found, allocation),
            }
            for found, allocation in zip(scores.sweep, allocations, strict=True)
        ]
    return head


def request_fields(allocation: Allocation) -> dict[str, Any]:
    """What the allocation was asked for, and its totals."""
    request = allocation.request
    return {
        "base": Path(request.base).name,
        "base_options": dict(request.options),
        "requested_sparsity": request.sparsity,
        "correct": request.correct,
        "strength": request.strength,
        "max_correction": request.max_correction,
        "correction_scale": request.correction_scale,
        "lo": request.lo,
        "hi": request.hi,
        "compat": request.compat,
        **allocation_totals(allocation),
    }


def allocation_totals(allocation: Allocation) -> dict[str, Any]:
    """Totals of an allocation."""
    return {
        "total_weights": allocation.total_weights,
        "total_pruned": allocation.total_pruned,
        "clipped_share": float(allocation.clipped.mean()),
    }


def allocation_rows(scores: Scores, allocation: Allocation) -> list[dict[str, Any]]:
    """Sparsity and counts of every block and linear."""
    alpha = scores.signals.alpha
    return [
        {
            "index": i,
            "num_weights": int(scores.linear_sizes.sum()),
            "base_sparsity": float(allocation.base_sparsity[i]),
            "corrected_sparsity": float(allocation.corrected_sparsity[i]),
            "num_pruned": int(allocation.num_pruned[i]),
            "linears": [
                {
                    "name": name,
                    "shape": list(shape),
                    **({} if alpha is None else {"alpha": float(alpha[i, j])}),
                    "sparsity": float(allocation.linear_sparsity[i, j]),
                    "num_pruned": int(allocation.linear_pruned[i, j]),
                }
                for j, (name, shape) in enumerate(scores.linears.items())
            ],
        }
        for i in range(scores.num_blocks)
    ]


def block_rows(scores: Scores, found: Absorption, allocation: Allocation) -> list[dict[str, Any]]:
    """Everything about every block at one eta."""
    signals, rows = scores.signals, []
    few = scores.tokens.samples < 2
    for i, row in enumerate(allocation_rows(scores, allocation)):
        r, stderr = _known(found.coefficient[i]), _known(found.stderr[i])
        once = few or (scores.plan.subset is not None and r is not None)
        why = "fewer than two sequences" if once else "no token with a drift"
        rows.append(
            row
            | {
                "absorption_coefficient": r,
                "absorption_stderr": stderr,
                **({"absorption_stderr_reason": why} if stderr is None else {}),
                "log_absorption": None if r is None or r <= 0 else float(np.log(r)),
                "tokens_left_out": int(found.left_out[i]),
                "tokens_excluded_as_sinks": int(scores.sinks[i]),
                "drift": [_known(x) for x in found.drift[i, i:]],
                "alignment": [_known(x) for x in found.alignment[i, i:]],
                "arrival": _known(found.arrival[i]),
                "divergence": None if found.divergence is None else _known(found.divergence[i]),
                "signals": {
                    "owl_outlier_percent": float(signals.owl_outlier_percent[i]),
                    "dlp_score": float(signals.dlp_score[i]),
                    "alphapruning_alpha": None
                    if signals.alpha is None
                    else float(signals.alpha[i].mean()),
                    "alphapruning_margin": None
                    if signals.alpha_margin is None
                    else [_known(x) for x in signals.alpha_margin[i]],
                },
            }
        )
    return rows


def _known(x: float) -> float | None:
    """A number for JSON: null where it is unknown."""
    return None if np.isnan(x) else float(x)
