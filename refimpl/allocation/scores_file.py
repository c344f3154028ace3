"""`scores.json` read back: scores, to make other allocations of them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np

from refimpl.allocation.request import TOO_MUCH
from refimpl.allocation.scores import Absorption, PrunedAt, Scores, Signals
from refimpl.allocation.scores_document import FORMAT
from refimpl.errors import RefimplError
from refimpl.method.perturbation import Perturbation
from refimpl.model.ops import Array
from refimpl.running.provenance import Run, TokenFacts

F = TypeVar("F")

LARGEST = 1 << 24  # no linear has more rows or columns; their products fit into 64 bits


def read_scores(path: Path) -> Scores:
    """Read scores back from the file that `refimpl score -o` wrote.

    Args:
        path: The file.

    Returns:
        The scores.

    Raises:
        RefimplError: Unreadable, or not a whole `scores.json`.
    """
    return understood(path, _scores)


def understood(path: Path, meaning: Callable[[Mapping[str, Any]], F]) -> F:
    """Read a `scores.json` and make something of it.

    Args:
        path: The file.
        meaning: What to make of the parsed document; where it raises ValueError, LookupError or
            TypeError, the file is not whole.

    Returns:
        What `meaning` made of it.

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
        return meaning(given)
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
    choice = [given[name] for name in choices] + [given.get("subset")]  # which older files lack
    return Scores(
        model=str(given["model"]),
        family=str(given["family"]),
        linears=linears,
        num_blocks=len(blocks),
        tokens=_facts(TokenFacts, given["tokens"]),
        plan=Perturbation(given["perturbation"], tuple(etas), *choice),
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
        budget_minutes=None if (time := given.get("budget_minutes")) is None else float(time),
    )


def _finite(text: str) -> float:
    """A number from JSON, where Python would take NaN, Infinity and what no float holds too."""
    if not isfinite(number := float(text)):
        raise ValueError(f"the number {text}")
    return number


def _facts(kind: type[F], given: Mapping[str, Any]) -> F:
    """A dataclass of plain values, each of the type that it declares."""
    hints = get_type_hints(kind)
    later = {f.name: f.default for f in fields(kind) if f.default is not MISSING}  # type: ignore[arg-type]
    given = later | dict(given)  # facts that older files do not have
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
