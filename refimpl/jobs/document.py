"""`scores.json`: everything that was found and how, enough to make any allocation again."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from refimpl.errors import RefimplError
from refimpl.jobs.allocate import Allocation
from refimpl.jobs.request import TOO_MUCH
from refimpl.jobs.scores import Absorption, PrunedAt, Run, Scores, Signals, TokenFacts
from refimpl.method.perturbation import Perturbation
from refimpl.model.ops import Array

F = TypeVar("F")

FORMAT = 1
LARGEST = 1 << 24  # no linear has more rows or columns; their products fit into 64 bits


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
    few = "fewer than two sequences" if scores.tokens.samples < 2 else "no token with a drift"
    for i, row in enumerate(allocation_rows(scores, allocation)):
        r, stderr = _known(found.coefficient[i]), _known(found.stderr[i])
        rows.append(
            row
            | {
                "absorption_coefficient": r,
                "absorption_stderr": stderr,
                **({"absorption_stderr_reason": few} if stderr is None else {}),
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


def read_scores(path: Path) -> Scores:
    """Read scores back from the file that `refimpl score -o` wrote.

    Args:
        path: The file.

    Returns:
        The scores.

    Raises:
        RefimplError: Unreadable, or not a whole `scores.json`.
    """
    try:
        text = path.read_text("utf-8")
        given = json.loads(
            text,
            parse_float=_finite,
            parse_constant=_finite,
            parse_int=lambda digits: int(digits) if _finite(digits) else 0,
        )
        if given.get("format") != FORMAT:
            raise ValueError(f"format {given.get('format')!r}, expected {FORMAT}")
        return _scores(given)
    except OSError as error:
        raise RefimplError(
            f"{path}: cannot be read ({error.strerror})", "a scores.json", "check the path"
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError, *TOO_MUCH) as e:
        why = str(e).partition("\n")[0] if isinstance(e, ValueError) else repr(e)
        raise RefimplError(
            f"{path}: not a whole scores.json ({why})",
            "a file written by refimpl score -o",
            "run refimpl score again",
        ) from e


def _scores(given: Mapping[str, Any]) -> Scores:
    """The inverse of `document`, without the allocations."""
    sweep = given.get("sweep") or [given]
    options, blocks, at = given["signal_options"], given["blocks"], given["perturbed_at"]
    linears = {name: (int(out), int(width)) for name, (out, width) in given["linears"].items()}
    if {len(blocks), *(len(found["blocks"]) for found in sweep)} != {given["num_blocks"]}:
        raise ValueError(f"{len(blocks)} blocks, expected {given['num_blocks']}")
    if not linears or not all(0 < n < LARGEST for shape in linears.values() for n in shape):
        raise ValueError(f"linears {linears}")
    if (given["perturbation"] == "pruning") != (at is not None):
        raise ValueError(f"perturbation {given['perturbation']}, perturbed_at {at}")

    signals = [block["signals"] for block in blocks]
    has_alpha = options["alpha_fit"] is not None
    each = (len(blocks), len(linears))
    alpha = [[x["alpha"] for x in block["linears"]] for block in blocks] if has_alpha else None
    margin = [signal["alphapruning_margin"] for signal in signals] if has_alpha else None
    etas = [0.01] if at is not None else [float(found["eta"]) for found in sweep]
    choices = ("noise_scale", "noise_shape", "norm", "sink", "draws", "seed")
    return Scores(
        model=str(given["model"]),
        family=str(given["family"]),
        linears=linears,
        num_blocks=len(blocks),
        tokens=_facts(TokenFacts, given["tokens"]),
        plan=Perturbation(given["perturbation"], tuple(etas), *(given[name] for name in choices)),
        sweep=tuple(
            Absorption(
                eta if at is None else None,
                _triangle(found["blocks"], "drift"),
                _triangle(found["blocks"], "alignment"),
                _column(found["blocks"], "absorption_coefficient"),
                _column(found["blocks"], "absorption_stderr"),
                np.array([int(block["tokens_left_out"]) for block in found["blocks"]], np.int64),
                None if np.isnan(kl := _column(found["blocks"], "divergence")).all() else kl,
            )
            for eta, found in zip(etas, sweep, strict=True)
        ),
        sinks=np.array([int(block["tokens_excluded_as_sinks"]) for block in blocks], np.int64),
        signals=Signals(
            float(options["owl_m"]),
            _column(signals, "owl_outlier_percent", nulls=False),
            str(options["dlp_statistic"]),
            _column(signals, "dlp_score", nulls=False),
            options["alpha_fit"],
            options["alpha_xmin"],
            None if alpha is None else _numbers(alpha, each, nulls=False),
            None if margin is None else _numbers(margin, each),
        ),
        run=_facts(Run, given["run"]),
        pruned_at=None
        if at is None
        else PrunedAt(
            str(at["base"]),
            dict(at["options"]),
            float(at["sparsity"]),
            np.array(at["linear_pruned"], np.int64),
        ),
    )


def _known(x: float) -> float | None:
    """A number for JSON: null where it is unknown."""
    return None if np.isnan(x) else float(x)


def _finite(text: str) -> float:
    """A number from JSON, where Python would take NaN, Infinity and what no float holds too."""
    if not isfinite(number := float(text)):
        raise ValueError(f"the number {text}")
    return number


def _facts(kind: type[F], given: Mapping[str, Any]) -> F:
    """A dataclass of plain values, each of the type that it declares."""
    hints = get_type_hints(kind)
    for name, wanted in hints.items():
        allowed = {float: int | float, Mapping[str, str]: dict}.get(wanted, wanted)
        if not isinstance(given[name], allowed):
            raise TypeError(f"{name} {given[name]!r}")
    return kind(**{name: given[name] for name in hints})


def _numbers(values: Any, shape: tuple[int, ...], nulls: bool = True) -> Array:
    """Numbers of a shape; NaN for null, where there may be any."""
    array = np.array(values, np.float64)
    if array.shape != shape or (np.isnan(array).any() and not nulls):
        raise ValueError(f"expected {shape} numbers, got {array.shape}, or null among them")
    return array


def _column(rows: list[Mapping[str, Any]], key: str, nulls: bool = True) -> Array:
    """One number of every block, [L]."""
    return _numbers([row[key] for row in rows], (len(rows),), nulls)


def _triangle(rows: list[Mapping[str, Any]], key: str) -> Array:
    """[L, L] from lists that start at the diagonal."""
    full = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        full[i, i:] = _numbers(row[key], (len(rows) - i,))
    return full
