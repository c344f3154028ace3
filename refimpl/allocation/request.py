"""What is asked for: an allocation, and the experiment that measures what its correction needs."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from refimpl.arguments import (
    AtLeastZero,
    Checked,
    Compat,
    Fraction,
    NotNegative,
    common_option,
    option,
    same_option,
)
from refimpl.bases.base import Base, base_named, bases
from refimpl.bases.uniform import UNIFORM
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import parsed_json, read_file
from refimpl.method.correction import MAX_CORRECTION, STRENGTH
from refimpl.method.perturbation import NoiseNorm, Sink
from refimpl.model.config import Linears, linear_sizes
from refimpl.model.ops import Array
from refimpl.pruners.admm import ADMM
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import DAMPING, pruner_named, pruners
from refimpl.pruners.wanda import WANDA
from refimpl.records import nearest

Correction = Literal["absorption", "divergence"]
PROBE_DELTA = 0.1
GROWTH_BLOCKS = (
    4  # that are also probed below and above: how fast errors grow hardly differs
)
MOST_DRAWS = 1 << 16  # the standard error shrinks with the root of the draws
ETA_EPSILONS = 64  # machine epsilons: the least eta that a dtype resolves
FILE = "a file"  # the source of a base that is one
PRECISION = 0.025  # costs less than the noise floor: docs/how-to/calibrate.md


class Perturbation(Checked):
    """How states are perturbed and how the perturbation is followed: `Noise` or `Probes`."""

    seed: int
    precision = cast("float | None", None)  # no field of `Noise`
    sink: Sink = "include"  # no field of `Probes`: all tokens take part
    draws = 1  # no field of `Probes`: nothing is random

    @property
    def etas(self) -> tuple[float | None, ...]:
        """The size of each result; None where the perturbation itself sets it."""
        return (None,)

    def variants(self, block: int = 0, blocks: int = 1) -> int:
        """Perturbed states per sequence and draw of one of the blocks."""
        return len(self.etas)

    def perturbed_samples(self, samples: int) -> int:
        """How many of so many samples are perturbed."""
        return samples


@dataclass(frozen=True, kw_only=True)
class Noise(Perturbation):
    """Gaussian noise is added to the output of a block.

    Raises:
        RefimplError: A value outside its range.
    """

    kind: Literal["gaussian"] = option(
        "gaussian",
        "pruning prunes each block alone, to its sparsity in the base allocation; gaussian adds "
        "noise to its output. Default: gaussian with `correct` absorption, else pruning.",
        name="perturbation",
    )
    eta: float | tuple[float, ...] = option(
        (0.01,),
        "With `perturbation` gaussian: size of the noise as a fraction of the state's norm, above "
        "0. Several values, separated by commas (1e-4,1e-2,1), are measured in one run.",
        "X[,X...]",
        type=tuple[float, ...],
    )
    sink: Sink = option(
        "include",
        "With `perturbation` gaussian: include or exclude tokens whose norm is more than 20 times "
        "the median.",
    )
    draws: Annotated[int, Meta(ge=1, le=MOST_DRAWS)] = 1
    seed: AtLeastZero = option(0, "Seed of all random numbers, 0 or more.", "N")
    noise_norm: NoiseNorm = option(
        "exact",
        "With `perturbation` gaussian. exact: the noise of every token has the length eta ||h||; "
        "expected: only its root mean square has, as that of N(0, eta^2 ||h||^2 / D).",
    )

    @property
    def etas(self) -> tuple[float, ...]:
        """Every size of the noise."""
        return self.eta if isinstance(self.eta, tuple) else (self.eta,)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eta", self.etas)
        etas = ", ".join(map(str, self.etas)) or "(none)"
        if not self.etas or any(not 0 < eta < inf for eta in self.etas):
            expected = "positive, finite relative magnitudes"
            raise RefimplError(f"`eta` {etas}", expected, "use for example `eta=0.01`")
        if len(set(self.etas)) < len(self.etas):
            raise RefimplError(
                f"`eta` {etas}", "each value once", "remove the duplicates"
            )


@dataclass(frozen=True, kw_only=True)
class Probes(Perturbation):
    """A block is pruned alone, everything else dense, at one sparsity or at three.

    Args:
        delta: Also prune four blocks, spread over the depth, this much less and this much more, to
            measure how errors grow. Default: 0.1 with measured strength.
        samples: Perturb at most so many samples, the first; all samples decide which weights to
            prune. Default: all.
        precision: Perturb no fourth or later sample once the sparsities of the blocks are known to
            this standard error (root mean square). Default: 0.025 with measured strength, and 0
            with probes by SparseGPT, whose factors all samples share.
        damping: Damping of the pruner's Hessian, as a fraction of its mean diagonal.

    Raises:
        RefimplError: A value outside its range, or an unknown pruner.
    """

    kind: Literal["pruning"] = same_option(Noise, "kind", default="pruning")
    seed: AtLeastZero = same_option(Noise, "seed")
    pruner: str = option(WANDA.name, "With `perturbation=pruning`: the pruner.", "NAME")
    delta: Annotated[float, Meta(ge=0.001, le=1)] | None = None
    samples: Annotated[int, Meta(ge=1)] | None = None
    precision: Annotated[float, Meta(ge=0, le=1)] | None = None
    damping: NotNegative = DAMPING

    @property
    def pruner_options(self) -> PrunerOptions:
        """The pruner and its options."""
        return PrunerOptions(self.pruner, self.damping, self.seed)

    def variants(self, block: int = 0, blocks: int = 1) -> int:
        """The block as in the base; then below and above."""
        parts = min(blocks, GROWTH_BLOCKS)
        middles = [(2 * i + 1) * blocks // (2 * parts) for i in range(parts)]
        return 3 if self.delta is not None and block in middles else 1

    def perturbed_samples(self, samples: int) -> int:
        """How many of so many samples are perturbed at most."""
        return min(self.samples or samples, samples)

    def __post_init__(self) -> None:
        super().__post_init__()
        pruner_named(self.pruner)


def probes_for(pruner: PrunerOptions) -> Probes:
    """The probes of a recommended allocation, by the pruner that will be used; of ADMM, by Wanda.

    Those take a third of the time of ADMM's own, and gave better models (docs/study.md).
    """
    probe = WANDA.name if pruner.record.name == ADMM.name else pruner.record.name
    return Probes(pruner=probe, damping=pruner.damping, seed=pruner.seed)


def require_resolved(plan: Perturbation, dtype: npt.DTypeLike) -> None:
    """Refuse an eta below 64 eps of the dtype, whose rounding drifts: explanation/numerics.md."""
    least = ETA_EPSILONS * float(np.finfo(np.dtype(dtype)).eps)
    if small := [eta for eta in plan.etas if eta is not None and eta < least]:
        raise RefimplError(
            f"eta {small[0]:g} in {np.dtype(dtype)}, whose rounding it does not exceed",
            f"eta of {least:.1e} or more",
            "use a larger `eta`"
            + (", or `dtype=float64`" if np.dtype(dtype).itemsize < 8 else ""),
        )


@dataclass(frozen=True)
class Request(Checked):
    """The request for an allocation.

    Raises:
        RefimplError: A value outside its range, an unknown base or option.
    """

    base: str | Base = common_option(
        UNIFORM.name,
        "Base allocation: its name, or a JSON file with a sparsity per block or per linear.",
        "NAME|FILE",
    )
    options: Mapping[str, float | str] = option(
        dict, "Option of the base; may be repeated.", "NAME=VALUE", name="base_option"
    )
    sparsity: Fraction = common_option(
        0.5,
        "Fraction of all prunable weights to prune, 0 to 1, or a percentage such as 50%.",
        "FRACTION",
    )
    correct: Correction | Literal["none"] | None = common_option(
        "divergence",
        "divergence, absorption (the paper's) or none. Default: divergence with `perturbation` "
        "pruning, none with gaussian.",
        "NAME",
    )
    strength: (
        Annotated[float, Meta(ge=-100, le=100)] | Literal["measured", "default"]
    ) = option(
        "default",
        "Change of a block's sparsity per unit of the correction; measured: equal marginal errors, "
        "from probes at three sparsities. Default: measured for divergence, 0.05 (provisional) for "
        "absorption.",
        "X|measured",
    )
    max_correction: Fraction = option(
        MAX_CORRECTION,
        "Largest change of a block's sparsity, 0 to 1 (provisional default).",
        "FRACTION",
    )
    lo: Fraction = option(0.0, "Smallest sparsity of any block or linear.", "FRACTION")
    hi: Fraction = option(1.0, "Largest sparsity of any block or linear.", "FRACTION")
    compat: Compat = option(
        "exact",
        "exact follows the formula of each base; peer follows the code of its authors, without a "
        "correction.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.correct == "none":
            object.__setattr__(self, "correct", None)
        if self.correct is not None and self.compat == "peer":
            raise RefimplError(
                f"a correction ({self.correct}) with compat peer",
                "no correction: peer reproduces the published code of the base allocation",
                "use `correct=none`, or `compat=exact`",
            )
        if self.strength == "default":
            usual = "measured" if self.correct == "divergence" else STRENGTH
            object.__setattr__(self, "strength", usual)
        if self.strength == "measured" and self.correct == "absorption":
            raise RefimplError(
                "measured strength with the absorption correction",
                "a number: only divergence is measured at several sparsities",
                f"use `strength={STRENGTH}`, or `correct=divergence`",
            )
        object.__setattr__(self, "options", self.record.checked(self.options))

    @property
    def record(self) -> Base:
        """The base."""
        return base_of(self.base)

    @property
    def file(self) -> Path | None:
        """The file that is the base, or None."""
        is_file = isinstance(self.base, str) and self.record.source == FILE
        return Path(str(self.base)) if is_file else None

    @property
    def pruned_at(self) -> "Request":
        """The request for the allocation at which the pruning perturbation prunes."""
        return replace(self, compat="exact", correct=None)

    @property
    def fixed_strength(self) -> float:
        """Fraction pruned per unit of the correction; a stand-in if the strength is measured."""
        return self.strength if isinstance(self.strength, int | float) else STRENGTH

    @property
    def measured(self) -> bool:
        """Whether the strength comes from probes."""
        return self.correct == "divergence" and self.strength == "measured"

    def perturbation(self, plan: Perturbation | None) -> Perturbation:
        """The perturbation that this request needs: as planned, at three sparsities if it asks so.

        Without a plan: noise for the correction absorption, else pruned blocks.

        Raises:
            RefimplError: Noise, although the correction needs pruned blocks.
        """
        if plan is None:
            plan = Noise() if self.correct == "absorption" else Probes()
        if not isinstance(plan, Probes):
            if self.correct == "divergence":
                raise RefimplError(
                    "the divergence correction with Gaussian noise",
                    "`perturbation=pruning`, which measures the error that pruning makes",
                    "use `perturbation=pruning`, `correct=absorption` or none",
                )
            return plan
        if self.measured and plan.delta is None:
            plan = replace(plan, delta=PROBE_DELTA)
        if self.measured and plan.precision is None:
            together = (
                plan.pruner_options.record.needs == "products"
            )  # factors all samples share
            plan = replace(plan, precision=0.0 if together else PRECISION)
        if plan.precision is not None and not self.measured:
            raise RefimplError(
                f"precision {plan.precision} without probes",
                "measured strength",
                "use `correct=divergence`, or omit the precision",
            )
        return plan


def base_of(base: str | Base) -> Base:
    """The requested base: a record, a named one, or the contents of a file."""
    if isinstance(base, Base):
        return base
    if base not in bases() and (path := Path(base)).is_file():
        return Base(
            path.name, path.name, FILE, lambda asked: read_custom(path, asked.linears)
        )
    if (record := base_named(base)) is None:
        problem = f"base {base!r} is neither a base allocation nor a file"
        step = nearest(base, bases(), "check the spelling or the path")
        if base in pruners():
            problem, step = f"base {base!r} is a pruner", "pass it as the pruner"
        accepted = (
            f"{', '.join(bases())}, or a JSON file with a sparsity per block or linear"
        )
        raise RefimplError(problem, accepted, step)
    return record


def own_budget(path: Path, linears: Linears) -> float | None:
    """The mean sparsity of a file of one's own, over the weights; None for a file of scores."""
    with suppress(OSError):  # which `read_custom` refuses
        if read_file(path).lstrip().startswith(b"{"):
            return None
    sparsity, sizes = read_custom(path, linears), linear_sizes(linears)
    return float(
        np.average(sparsity, weights=sizes if sparsity.ndim == 2 else sizes.sum(axis=1))
    )


def read_custom(path: Path, linears: Linears) -> Array:
    """Read a base allocation: a JSON list of numbers [L], or of lists of them [L, linears]."""
    sizes, count = linear_sizes(linears), [*map(len, linears)]
    try:
        content = parsed_json(read_file(path).decode("utf-8"))
        if isinstance(content, Mapping) and "allocations" in content:
            raise ValueError(
                "it is a file of scores, whose allocation has its own sparsity"
            )
        rows = content if isinstance(content, list) else [content]
        by_linear = any(isinstance(row, list) for row in rows)
        lists = [row if isinstance(row, list) else [row] for row in rows]
        if [*map(len, lists)] != (count if by_linear else [1] * len(count)):
            each = ", ".join(str(len(row)) for row in lists)
            raise ValueError(f"{len(lists)} rows of {each:.40} numbers")
        numbers = [x for row in lists for x in row]
        if odd := [x for x in numbers if type(x) not in (int, float)]:
            raise ValueError(f"{odd[0]!r:.40} is no number")
        if not all(0 <= x <= 1 for x in numbers):
            raise ValueError("a number that is not from 0 to 1")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RefimplError(
            f"{path}: not an allocation for this model ({reason})",
            f"a list of {len(count)} numbers (one per block) from 0 to 1, or of as many lists of "
            f"them (one per linear)",
            "correct it; prune by a file of scores with `allocation=FILE` and without `sparsity`",
        ) from error
    if not by_linear:
        return np.array(numbers, np.float64)
    per_linear = np.zeros(sizes.shape)
    per_linear[sizes > 0] = numbers
    return per_linear
