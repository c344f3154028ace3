"""The plan of an experiment: noise on the output of each block, or blocks that are pruned alone."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal, cast

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from refimpl.arguments import Checked, Count, NotNegative, option, same_option
from refimpl.errors import RefimplError
from refimpl.method.perturbation import NoiseNorm, Sink
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import DAMPING, pruner_named
from refimpl.pruners.wanda import WANDA

Units = Literal["blocks", "linears"]

GROWTH_BLOCKS = 4  # that are also probed below and above: how fast errors grow hardly differs
MOST_DRAWS = 1 << 16  # the standard error shrinks with the root of the draws
ETA_EPSILONS = 64  # machine epsilons: the least eta that a dtype resolves


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

    def variants(self, linears: int, block: int = 0, blocks: int = 1) -> int:
        """Perturbed states per sequence and draw of one of the blocks, with so many linears."""
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
    seed: Count = option(0, "Seed of all random numbers, 0 or more.", "N")
    noise_norm: NoiseNorm = option(
        "exact",
        "With `perturbation` gaussian: noise of the length eta ||h||, or of this length only as a "
        "root mean square, as N(0, eta^2 ||h||^2 / D).",
    )

    @property
    def etas(self) -> tuple[float, ...]:
        """Every size of the noise."""
        return self.eta if isinstance(self.eta, tuple) else (self.eta,)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "eta", self.etas)
        if not self.etas or any(not 0 < eta < inf for eta in self.etas):
            etas, expected = self.etas or "(none)", "positive, finite relative magnitudes"
            raise RefimplError(f"`eta` {etas}", expected, "use for example `eta=0.01`")
        if len(set(self.etas)) < len(self.etas):
            raise RefimplError(f"`eta` {self.etas}", "each value once", "remove the duplicates")


@dataclass(frozen=True, kw_only=True)
class Probes(Perturbation):
    """A block is pruned alone, everything else dense, at one sparsity or at three.

    Args:
        delta: Also prune the units of four blocks, spread over the depth, this much less and this
            much more, to measure how errors grow. Default: 0.1 with measured strength.
        units: Units that are pruned alone, and that get their own sparsity: blocks, or linears.
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
    seed: Count = same_option(Noise, "seed")
    pruner: str = option(WANDA.name, "With `perturbation=pruning`: the pruner.", "NAME")
    delta: Annotated[float, Meta(ge=0.001, le=1)] | None = None
    units: Units = "blocks"
    samples: Annotated[int, Meta(ge=1)] | None = None
    precision: Annotated[float, Meta(ge=0, le=1)] | None = None
    damping: NotNegative = DAMPING

    @property
    def pruner_options(self) -> PrunerOptions:
        """The pruner and its options."""
        return PrunerOptions(self.pruner, self.damping, self.seed)

    def variants(self, linears: int, block: int = 0, blocks: int = 1) -> int:
        """The block as in the base; then below and above, or each linear at, below and above."""
        if self.delta is None:
            return 1
        at, beside = (1, 2) if self.units == "blocks" else (1 + linears, 2 * linears)
        parts = min(blocks, GROWTH_BLOCKS)
        middles = [(2 * i + 1) * blocks // (2 * parts) for i in range(parts)]
        return at + beside * (block in middles)

    def perturbed_samples(self, samples: int) -> int:
        """How many of so many samples are perturbed at most."""
        return min(self.samples or samples, samples)

    def __post_init__(self) -> None:
        super().__post_init__()
        pruner_named(self.pruner)


def require_resolved(plan: Perturbation, dtype: npt.DTypeLike) -> None:
    """Refuse an eta below 64 eps of the dtype, whose rounding drifts: explanation/numerics.md."""
    least = ETA_EPSILONS * float(np.finfo(np.dtype(dtype)).eps)
    if small := [eta for eta in plan.etas if eta is not None and eta < least]:
        raise RefimplError(
            f"eta {small[0]:g} in {np.dtype(dtype)}, whose rounding it does not exceed",
            f"eta of {least:.1e} or more",
            "use a larger `eta`" + (", or `dtype=float64`" if np.dtype(dtype).itemsize < 8 else ""),
        )
