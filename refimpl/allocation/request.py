"""What an allocation is asked for: base, its options, sparsity, correction."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from refimpl.arguments import Checked, require
from refimpl.errors import RefimplError, listed
from refimpl.loading.files.file_reading import parsed_json, read_file
from refimpl.method.allocation import Compat
from refimpl.method.correction import MAX_CORRECTION, STRENGTH, Scale
from refimpl.method.perturbation import PROBE_SAMPLES, Perturbation
from refimpl.model.config import Linears, linear_sizes
from refimpl.model.ops import Array
from refimpl.pruners.decision import Pruner

Correction = Literal["absorption", "arrival", "divergence"]
Kappa = Literal["common", "own"]
OF_PRUNING = ("arrival", "divergence")  # corrections that need the pruning perturbation
PROBE_DELTA = 0.1

# Per base: its options with their defaults. A tuple lists the accepted words, the default first;
# None means that the option has no default; an integer, that it is a whole number.
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
    "lsa": {"beta": 0.15, "block": 128},
    "atp": {"beta": None},
}
Fraction = Annotated[float, 0, 1]
TOO_MUCH = (OverflowError, RecursionError)  # JSON with numbers too large, or nested too deep


@dataclass(frozen=True)
class Request(Checked):
    """What an allocation is asked for.

    Args:
        base: "uniform", "owl", "alphapruning", "dlp", "lsa", "atp", or a file (JSON or CSV)
            with a sparsity per block or per linear.
        options: Options of the base; omitted ones take their defaults.
        sparsity: Target S over all weights.
        correct: "absorption", "arrival", "divergence", or None; "default" is absorption, or None
            with `compat="peer"`.
        strength: Fraction pruned per unit of the correction, or "measured": equal marginal errors
            by probes at three sparsities; "default" is measured for arrival and divergence, and
            0.05 for absorption.
        max_correction: Greatest change of a block's fraction pruned.
        correction_scale: "raw", or "max" so that the greatest |Delta| is 1.
        lo: Least sparsity of a unit.
        hi: Greatest sparsity of a unit.
        compat: "exact", or "peer" to reproduce the published code of the base.
        kappa: With measured strength: one growth rate for all blocks, "common", or "own".

    Raises:
        RefimplError: A value outside its range, an unknown base or option.
    """

    base: str = "uniform"
    options: Mapping[str, float | str] = field(default_factory=dict)
    sparsity: Fraction = 0.7
    correct: Correction | Literal["default"] | None = "default"
    strength: Annotated[float, -100, 100] | Literal["measured", "default"] = "default"
    max_correction: Fraction = MAX_CORRECTION
    correction_scale: Scale = "raw"
    lo: Fraction = 0.0
    hi: Fraction = 1.0
    compat: Compat = "exact"
    kappa: Kappa = "common"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correct == "default":
            object.__setattr__(self, "correct", "absorption" if self.compat == "exact" else None)
        if self.correct is not None and self.compat == "peer":
            raise RefimplError(
                f"a correction ({self.correct}) with compat peer",
                "no correction: peer reproduces the published code of the base allocation",
                "omit --correct, or use --compat exact",
            )
        if self.strength == "default":
            usual = "measured" if self.correct in OF_PRUNING else STRENGTH
            object.__setattr__(self, "strength", usual)
        if self.strength == "measured" and self.correct == "absorption":
            raise RefimplError(
                "measured strength with the absorption correction",
                "a number: only arrival and divergence are measured at several sparsities",
                f"use --strength {STRENGTH}, or --correct divergence",
            )
        object.__setattr__(self, "options", _options(self.base, self.options))

    @property
    def fixed_strength(self) -> float:
        """Fraction pruned per unit of the correction: where it is measured, what stands in."""
        return self.strength if isinstance(self.strength, int | float) else STRENGTH

    @property
    def measured(self) -> bool:
        """Whether the strength comes from probes."""
        return self.correct in OF_PRUNING and self.strength == "measured"

    def perturbation(self, plan: Perturbation | None) -> Perturbation:
        """The perturbation that this request needs: as planned, with probes if there are none.

        Raises:
            RefimplError: Noise, where the correction or the probes need pruned blocks.
        """
        if plan is None:
            plan = Perturbation("pruning" if self.correct in OF_PRUNING else "gaussian")
        probes = (plan.probe_delta, plan.pruner, plan.units, plan.probe_samples)
        usual = probes == (None, Pruner(seed=plan.seed), "blocks", None)
        if plan.kind != "pruning" and (self.correct in OF_PRUNING or not usual):
            what = f"the {self.correct} correction" if self.correct in OF_PRUNING else "a probe"
            raise RefimplError(
                f"{what} with Gaussian noise",
                "the pruning perturbation, which measures the error that pruning makes",
                "add --perturbation pruning, or use --correct absorption without options of probes",
            )
        if self.measured and plan.probe_delta is None:
            plan = replace(plan, probe_delta=PROBE_DELTA)
        if self.measured and plan.probe_samples is None:
            plan = replace(plan, probe_samples=PROBE_SAMPLES)
        if plan.units == "linears" and plan.probe_delta is None:
            raise RefimplError(
                "units linears without probes",
                "measured strength, or a probe-delta: only probes prune linears alone",
                "add --correct divergence, or omit --units",
            )
        return plan


def _options(base: str, options: Mapping[str, float | str]) -> dict[str, float | str]:
    """All options of a base: those of the request, checked, and the defaults of the others."""
    if base not in BASES and not Path(base).is_file():
        raise RefimplError(
            f"base {base!r} is neither a base allocation nor a file",
            f"{', '.join(BASES)}, or a JSON or CSV file with a sparsity per block or linear",
            "check the spelling or the path",
        )
    defaults = BASES.get(base, {})
    if unknown := options.keys() - defaults.keys():
        raise RefimplError(
            f"base {base}: unknown option {listed(sorted(unknown))}",
            f"the options {', '.join(defaults)}" if defaults else "no option",
            "correct or remove --base-option",
        )
    return {
        name: _option(base, name, options.get(name, _default(default)), default)
        for name, default in defaults.items()
    }


def _default(default: Any) -> Any:
    return default[0] if isinstance(default, tuple) else default


def _option(base: str, name: str, value: Any, default: Any) -> float | str:
    """One option of a base, checked against what its default says of it."""
    if isinstance(default, tuple):
        require(value, Literal[default], f"base option {name}")
        return str(value)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not isfinite(number):
        raise RefimplError(
            f"base {base}: option {name} is {'missing' if value is None else repr(value)}",
            "a finite number",
            f"use --base-option {name}=NUMBER",
        )
    if isinstance(default, int):
        if number < 0 or number % 1:
            raise RefimplError(
                f"base {base}: option {name} is {number:g}",
                "a whole number of 0 or more",
                f"use for example --base-option {name}={default}",
            )
        return int(number)
    return number


def read_custom(path: Path, linears: Linears) -> Array:
    """Read a base allocation, per block [L] or per linear [L, linears], from a JSON or CSV file.

    JSON: a list with a number per block, a list per block with a number per linear, or an object
    from `blocks.3` or `blocks.3.q_proj` to a number. CSV: lines `blocks.3,0.7` or `0.7`.
    """
    blocks = [f"blocks.{i}" for i in range(len(linears))]
    units = [f"{at}.{name}" for at, names in zip(blocks, linears, strict=True) for name in names]
    try:
        text = read_file(path).decode("utf-8")
        content = _csv_content(text) if path.suffix.lower() == ".csv" else parsed_json(text)
        if isinstance(content, Mapping):
            names = min((blocks, units), key=lambda names: len(content.keys() ^ set(names)))
            if odd := sorted(content.keys() ^ set(names))[:3]:
                raise ValueError(f"missing or unknown names such as {', '.join(odd)}")
            content = [content[name] for name in names]
        lists = isinstance(content, list) and all(isinstance(row, list) for row in content)
        if lists and [*map(len, content)] == [*map(len, linears)]:
            content = [number for row in content for number in row]
        values = np.array(content, np.float64)
        if values.shape not in ((len(blocks),), (len(units),)):
            raise ValueError(f"{values.size} numbers")
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError("a number that is not from 0 to 1")
    except (OSError, csv.Error, ValueError, TypeError, LookupError, *TOO_MUCH) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RefimplError(
            f"{path}: not an allocation for this model ({reason})",
            f"{len(blocks)} numbers (one per block) or {len(units)} (one per linear) from 0 to 1",
            "correct the file",
        ) from error
    if values.size == len(blocks):
        return values
    sizes = linear_sizes(linears)
    per_linear = np.zeros(sizes.shape)
    per_linear[sizes > 0] = values
    return per_linear


def _csv_content(text: str) -> Any:
    """The lines of a CSV file: an object if each has a name and a number, else a list."""
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if len(rows[0]) != 2:
        return [number for (number,) in rows]
    if len(content := dict(rows)) < len(rows):
        raise ValueError("a name twice")
    return content
