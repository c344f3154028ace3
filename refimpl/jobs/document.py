"""`scores.json`: everything that was found and how, enough to make any allocation again."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.jobs.allocate import Allocation
from refimpl.jobs.scores import Absorption, PrunedAt, Run, Scores, Signals, TokenFacts
from refimpl.method.perturbation import Perturbation
from refimpl.model.ops import Array

FORMAT = 1


def document(scores: Scores, allocations: tuple[Allocation, ...]) -> dict[str, Any]:
    """Scores and their allocations as one JSON document.

    Args:
        scores: What was found.
        allocations: One per eta.

    Returns:
        The document: numbers, strings, lists and objects; unknown numbers are null.
    """
    first, plan, request = scores.sweep[0], scores.plan, allocations[0].request
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
    del request
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
        given = json.loads(path.read_text("utf-8"))
        if given.get("format") != FORMAT:
            raise ValueError(f"format {given.get('format')!r}, expected {FORMAT}")
        return _scores(given)
    except OSError as error:
        raise RefimplError(
            f"{path}: cannot be read ({error.strerror})", "a scores.json", "check the path"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise RefimplError(
            f"{path}: not a whole scores.json ({what})",
            "a file written by refimpl score -o",
            "run refimpl score again",
        ) from error


def _scores(given: Mapping[str, Any]) -> Scores:
    """The inverse of `document`, without the allocations."""
    sweep = given.get("sweep") or [given]
    options, blocks, at = given["signal_options"], given["blocks"], given["perturbed_at"]
    if len(blocks) != given["num_blocks"]:
        raise ValueError(f"{len(blocks)} blocks, expected {given['num_blocks']}")

    def column(rows: list[Mapping[str, Any]], key: str) -> Array:
        return np.array([np.nan if row[key] is None else row[key] for row in rows], np.float64)

    signals = [block["signals"] for block in blocks]
    has_alpha = options["alpha_fit"] is not None
    plan = Perturbation(
        given["perturbation"],
        (0.01,) if at is not None else tuple(float(found["eta"]) for found in sweep),
        given["noise_scale"],
        given["noise_shape"],
        given["norm"],
        given["sink"],
        given["draws"],
        given["seed"],
    )
    return Scores(
        model=given["model"],
        family=given["family"],
        linears={name: (int(out), int(width)) for name, (out, width) in given["linears"].items()},
        num_blocks=given["num_blocks"],
        tokens=TokenFacts(**{f.name: given["tokens"][f.name] for f in fields(TokenFacts)}),
        plan=plan,
        sweep=tuple(
            Absorption(
                found["eta"],
                _triangle([block["drift"] for block in found["blocks"]]),
                _triangle([block["alignment"] for block in found["blocks"]]),
                column(found["blocks"], "absorption_coefficient"),
                column(found["blocks"], "absorption_stderr"),
                column(found["blocks"], "tokens_left_out").astype(np.int64),
                None
                if found["blocks"][0]["divergence"] is None
                else column(found["blocks"], "divergence"),
            )
            for found in sweep
        ),
        sinks=column(blocks, "tokens_excluded_as_sinks").astype(np.int64),
        signals=Signals(
            options["owl_m"],
            column(signals, "owl_outlier_percent"),
            options["dlp_statistic"],
            column(signals, "dlp_score"),
            options["alpha_fit"],
            options["alpha_xmin"],
            np.array([[x["alpha"] for x in b["linears"]] for b in blocks]) if has_alpha else None,
            np.array([s["alphapruning_margin"] for s in signals], np.float64)
            if has_alpha
            else None,
        ),
        run=Run(**{f.name: given["run"][f.name] for f in fields(Run)}),
        pruned_at=None
        if at is None
        else PrunedAt(
            at["base"], at["options"], at["sparsity"], np.array(at["linear_pruned"], np.int64)
        ),
    )


def _known(x: float) -> float | None:
    """A number for JSON: null where it is unknown."""
    return None if np.isnan(x) else float(x)


def _triangle(rows: list[list[float | None]]) -> Array:
    """[L, L] from lists that start at the diagonal."""
    full = np.full((len(rows), len(rows)), np.nan)
    for i, row in enumerate(rows):
        full[i, i:] = [np.nan if x is None else x for x in row]
    return full
