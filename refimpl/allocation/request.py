"""What an allocation is asked for: base, its options, sparsity, correction."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from refimpl.errors import RefimplError
from refimpl.method.correction import MAX_CORRECTION, STRENGTH
from refimpl.model.ops import Array

Correction = Literal["absorption", "arrival", "divergence"]
Scale = Literal["raw", "max"]
Compat = Literal["exact", "peer"]

# Per base: its options with their defaults; a tuple lists the words to choose from, the first is
# the default; None has no default.
BASES: Mapping[str, Mapping[str, Any]] = {
    "uniform": {},
    "owl": {"m": 5.0, "lam": 0.08},
    "alphapruning": {
        "epsilon": 0.3,
        "fit": ("peak", "mid"),
        "xmin": ("shipped", "intended"),
        "unit": ("block", "linear"),
    },
    "dlp": {"a": 0.15, "statistic": ("mean", "median")},
    "atp": {"beta": None},
}


TOO_MUCH = (OverflowError, RecursionError)  # JSON with numbers too large, or nested too deep


@dataclass(frozen=True)
class Request:
    """What an allocation is asked for.

    Args:
        base: "uniform", "owl", "alphapruning", "dlp", "atp", or a file (JSON or CSV) with a
            sparsity per block or per linear.
        options: Options of the base; those not given take their defaults.
        sparsity: Target S over all weights.
        correct: "absorption", "arrival", "divergence", or None; "default" is absorption, and none
            with `compat="peer"`.
        strength: Fraction pruned per unit of the correction.
        max_correction: Greatest change of a block's fraction pruned.
        correction_scale: "raw", or "max" so that the greatest |Delta| is 1.
        lo: Least sparsity of a unit.
        hi: Greatest sparsity of a unit.
        compat: "exact", or "peer" for the shipped code of the base.

    Raises:
        RefimplError: A value outside its range, an unknown base or option.
    """

    base: str = "uniform"
    options: Mapping[str, float | str] = field(default_factory=dict)
    sparsity: float = 0.7
    correct: Correction | Literal["default"] | None = "default"
    strength: float = STRENGTH
    max_correction: float = MAX_CORRECTION
    correction_scale: Scale = "raw"
    lo: float = 0.0
    hi: float = 1.0
    compat: Compat = "exact"

    def __post_init__(self) -> None:
        _one_of("compat", self.compat, get_args(Compat))
        if self.correct == "default":
            object.__setattr__(self, "correct", "absorption" if self.compat == "exact" else None)
        if self.correct is not None:
            _one_of("correct", self.correct, get_args(Correction))
            if self.compat == "peer":
                raise RefimplError(
                    f"a correction ({self.correct}) with compat peer",
                    "none: peer reproduces the shipped code of the base allocation",
                    "leave --correct away, or use --compat exact",
                )
        _one_of("correction-scale", self.correction_scale, get_args(Scale))
        for name, low, high in (
            ("sparsity", 0, 1),
            ("lo", 0, 1),
            ("hi", 0, 1),
            ("max_correction", 0, 1),
            ("strength", -100, 100),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise RefimplError(
                    f"{name.replace('_', '-')} {value}",
                    f"a number from {low} to {high}",
                    f"change --{name.replace('_', '-')}",
                )
        object.__setattr__(self, "options", _options(self.base, self.options))


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise RefimplError(f"{name} {value!r}", " or ".join(allowed), "choose one of these")


def _options(base: str, given: Mapping[str, float | str]) -> dict[str, float | str]:
    """Options of a base in full: those given, checked, and the defaults of the others."""
    if base not in BASES:
        if not Path(base).is_file():
            raise RefimplError(
                f"base {base!r}: neither a base allocation nor a file",
                f"{', '.join(BASES)}, or a JSON or CSV file with a sparsity per block or linear",
                "check the spelling or the path",
            )
        known: Mapping[str, Any] = {}
    else:
        known = BASES[base]
    if unknown := given.keys() - known.keys():
        raise RefimplError(
            f"base {base}: unknown option {', '.join(sorted(unknown))}",
            f"options out of {', '.join(known)}" if known else "no option",
            "correct or remove --base-option",
        )
    full: dict[str, float | str] = {}
    for name, default in known.items():
        value = given.get(name, default[0] if isinstance(default, tuple) else default)
        if isinstance(default, tuple):
            _one_of(f"base option {name}", value, default)
            full[name] = value
            continue
        try:
            full[name] = float(value)
        except (TypeError, ValueError):
            raise RefimplError(
                f"base {base}: option {name} is {'missing' if value is None else repr(value)}",
                "a number",
                f"use --base-option {name}=NUMBER",
            ) from None
        if not np.isfinite(full[name]):
            raise RefimplError(f"base option {name} {value}", "a finite number", "change it")
    return full


def read_custom(path: Path, num_blocks: int, linears: tuple[str, ...]) -> Array:
    """A custom base allocation from a file.

    JSON: a list with a number per block, a list per block with a number per linear, or an object
    from `blocks.3` or `blocks.3.q_proj` to a number. CSV: lines `blocks.3,0.7` or `0.7`.

    Args:
        path: The file.
        num_blocks: L.
        linears: Names of the linears of a block.

    Returns:
        Sparsity per block [L], or per linear [L, linears].

    Raises:
        RefimplError: Unreadable, not one number per block or linear, or outside [0, 1].
    """
    blocks = [f"blocks.{i}" for i in range(num_blocks)]
    units = [f"{b}.{name}" for b in blocks for name in linears]
    wanted = f"{num_blocks} numbers (one per block) or {len(units)} (one per linear) from 0 to 1"
    try:
        text = path.read_text("utf-8")
        if path.suffix.lower() == ".csv":
            rows = [row for row in csv.reader(text.splitlines()) if row]
            given: Any = dict(rows) if len(rows[0]) == 2 else [number for (number,) in rows]
            if len(given) < len(rows):
                raise ValueError("a name twice")
        else:
            given = json.loads(text)
        if isinstance(given, Mapping):
            names = min((blocks, units), key=lambda wanted: len(given.keys() ^ set(wanted)))
            if odd := sorted(given.keys() ^ set(names))[:3]:
                raise ValueError(f"missing or unknown names such as {', '.join(odd)}")
            given = [given[name] for name in names]
        values = np.array(given, np.float64)
        if values.size == len(units) != num_blocks:
            values = values.reshape(num_blocks, len(linears))
        if values.shape not in ((num_blocks,), (num_blocks, len(linears))):
            raise ValueError(f"{values.size} numbers")
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("a number that is not from 0 to 1")
    except (OSError, csv.Error, ValueError, TypeError, LookupError, *TOO_MUCH) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RefimplError(
            f"{path}: not an allocation for this model ({reason})", wanted, "correct the file"
        ) from error
    return values
