"""The perturbation experiment on one state: perturb it, and measure how far it drifts."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal, cast

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Checked, NotNegative, Seed, option, percentage, same_option
from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.pruners.compensation import DAMPING
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import pruner_named
from refimpl.pruners.wanda import WANDA

NoiseScale = Literal["token", "sequence"]
NoiseShape = Literal["isotropic", "channel"]
NoiseNorm = Literal["exact", "expected"]
Norm = Literal["token", "sequence"]
Sink = Literal["include", "exclude"]
Units = Literal["blocks", "linears"]

GROWTH_BLOCKS = 4  # that are also probed below and above: how fast errors grow hardly differs
MOST_DRAWS = 1 << 16  # the standard error shrinks with the root of the draws
ETA_EPSILONS = 64  # machine epsilons: the least eta that a dtype resolves
SINK_FACTOR = 20.0  # a token is a sink when its norm exceeds this many medians


class Perturbation(Checked):
    """How states are perturbed and how the perturbation is followed: `Noise` or `Probes`."""

    norm: Norm
    sink: Sink
    seed: int
    precision = cast("float | None", None)  # no field of `Noise`

    @property
    def draws(self) -> int:
        """Noise draws per sample and block; one if nothing is random."""
        return 1

    @property
    def etas(self) -> tuple[float | None, ...]:
        """The size of each result; None where the perturbation itself sets it."""
        return self.eta if isinstance(self, Noise) else (None,)

    @property
    def on_sinks(self) -> bool:
        """Whether noise is on sinks: then, at the first eta, states travel without it, too."""
        return isinstance(self, Noise) and self.sink == "include"

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
        "gaussian adds noise to a block's output; pruning prunes the block itself, to its sparsity "
        "in the base allocation. Default: pruning for the corrections arrival and divergence, else "
        "gaussian.",
        name="perturbation",
    )
    eta: tuple[float, ...] = option(
        (0.01,),
        "Size of the noise as a fraction of the state's norm, above 0. Several values, separated "
        "by commas (1e-4,1e-2,1), are measured in one run.",
        "X[,X...]",
    )
    noise_scale: NoiseScale = option(
        "token", "Scale the noise per token, or once per sequence.", of="variant"
    )
    noise_shape: NoiseShape = option(
        "isotropic",
        "The same noise in all channels, or in proportion to each channel's standard deviation.",
        of="variant",
    )
    norm: Norm = option(
        "token", "Measure drift per token and average it, or once per sequence.", of="variant"
    )
    sink: Sink = option(
        "include",
        "Include or exclude tokens whose norm is more than 20 times the median.",
        of="variant",
    )
    draws: Annotated[int, 1, MOST_DRAWS] = option(
        1, "Noise draws per sample and block, 1 or more.", "N"
    )
    seed: Seed = option(0, "Seed of all random numbers, 0 or more.", "N")
    noise_norm: NoiseNorm = option(
        "exact",
        "Noise of the length eta ||h||, or of this length only as a root mean square, as "
        "N(0, eta^2 ||h||^2 / D).",
        of="variant",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        etas = ", ".join(map(str, self.eta)) or "(none)"
        if not self.eta or any(not 0 < eta < inf for eta in self.eta):
            raise RefimplError(
                f"eta {etas}",
                "positive, finite relative magnitudes",
                "use for example --eta 0.01",
            )
        if len(set(self.eta)) < len(self.eta):
            raise RefimplError(f"eta {etas}", "each value once", "remove the duplicates")


@dataclass(frozen=True, kw_only=True)
class Probes(Perturbation):
    """A block is pruned alone, everything else dense, at one sparsity or at three.

    Raises:
        RefimplError: A value outside its range, or an unknown pruner.
    """

    kind: Literal["pruning"] = same_option(Noise, "kind", default="pruning")
    norm: Norm = same_option(Noise, "norm")
    sink: Sink = same_option(Noise, "sink")
    seed: Seed = same_option(Noise, "seed")
    probe_delta: float | None = option(
        None,
        "Also prune the units of four blocks, spread over the depth, this much less and this much "
        "more, to measure how errors grow. Default: 0.1 with measured strength.",
        "FRACTION",
        of="probe",
    )
    probe_pruner: str = option(WANDA.name, "Pruner of the probes:", "NAME", of="probe")
    units: Units = option(
        "blocks",
        "Units that are pruned alone, and that get their own sparsity: blocks, or linears.",
        of="probe",
    )
    probe_samples: Annotated[int, 1, inf] | None = option(
        None,
        "Perturb at most the first N samples; all samples decide which weights to prune. Default: "
        "all.",
        "N",
        of="probe",
    )
    precision: Annotated[float, 0, 1] | None = option(
        None,
        "Perturb no fourth or later sample once the sparsities of the blocks are known to this "
        "standard error (root mean square). Default: 0.025 with measured strength, and 0 with "
        "probes by SparseGPT, whose factors all samples share.",
        "FRACTION",
        of="probe",
    )
    probe_damping: NotNegative = option(
        DAMPING,
        "Damping of the pruner's Hessian, as a fraction of its mean diagonal.",
        "X",
        of="probe",
    )

    @property
    def pruner(self) -> PrunerOptions:
        """The pruner and its options."""
        return PrunerOptions(self.probe_pruner, self.probe_damping, self.seed)

    def variants(self, linears: int, block: int = 0, blocks: int = 1) -> int:
        """One per pruned block and probe.

        The block as in the base allocation; then below and above, or each linear at, below, above.
        Only some blocks, in the middle of equal parts of the depth, have those below and above.
        """
        if self.probe_delta is None:
            return 1
        at, beside = (1, 2) if self.units == "blocks" else (1 + linears, 2 * linears)
        parts = min(blocks, GROWTH_BLOCKS)
        middles = [(2 * i + 1) * blocks // (2 * parts) for i in range(parts)]
        return at + beside * (block in middles)

    def perturbed_samples(self, samples: int) -> int:
        """How many of so many samples are perturbed at most; more than there are is refused."""
        if (self.probe_samples or 0) > samples:
            raise RefimplError(
                f"probe-samples {self.probe_samples} of {samples} samples",
                f"at most {samples}",
                "use fewer, or add --samples",
            )
        return samples if self.probe_samples is None else self.probe_samples

    def __post_init__(self) -> None:
        super().__post_init__()
        pruner_named(self.probe_pruner, "probe-pruner")
        if self.probe_delta is not None and not 0 < self.probe_delta <= 1:
            raise RefimplError(
                f"probe-delta {self.probe_delta}",
                "a number above 0, at most 1",
                percentage("--probe delta=", self.probe_delta, "use for example --probe delta=0.1"),
            )


def require_resolved(plan: Perturbation, dtype: npt.DTypeLike) -> None:
    """Refuse an eta that the dtype cannot resolve: ``eta < 64 eps``.

    Rounding adds to every drift a floor of a few eps, which noise of this size does not exceed by
    enough: at the limit, r of a model of 30 blocks is within about 2 % of the r in float64, at a
    tenth of it 50 % off (docs/explanation/numerics.md).

    Args:
        plan: The perturbation.
        dtype: Of the computation.

    Raises:
        RefimplError: An eta below the limit.

    Example:
        >>> require_resolved(Noise(eta=(1e-5,)), np.float32)
    """
    least = ETA_EPSILONS * float(np.finfo(np.dtype(dtype)).eps)
    if small := [eta for eta in plan.etas if eta is not None and eta < least]:
        raise RefimplError(
            f"eta {small[0]:g} in {np.dtype(dtype)}, whose rounding it does not exceed",
            f"eta of {least:.1e} or more",
            "use a larger --eta" + (", or --dtype float64" if np.dtype(dtype).itemsize < 8 else ""),
        )


def kept_tokens(h: Array, sink: Sink) -> npt.NDArray[np.bool_]:
    """Which tokens take part: all, or those with ``||h_t|| <= 20 median_t ||h_t||``.

    Args:
        h: Residual stream at the perturbed block, [S, D].
        sink: "include" or "exclude".

    Returns:
        True where a token takes part, [S].

    Example:
        >>> kept_tokens(np.array([[100.0], [1.0], [1.0]]), "exclude").tolist()
        [False, True, True]
    """
    if sink == "include":
        return np.ones_like(h[:, 0], np.bool_)
    norms = np.linalg.norm(h.astype(np.float64), axis=-1)
    return norms <= SINK_FACTOR * np.median(norms)


def noise(seed: int, sequence: int, block: int, draw: int, shape: tuple[int, int]) -> Array:
    """Standard normal noise that depends on its address only, not on batching or order.

    It comes from Philox, keyed by (seed; sequence, block, draw).

    Args:
        seed: The run's seed.
        sequence: Number of the sequence, from 0.
        block: Number of the perturbed block, from 0.
        draw: Number of the draw, from 0.
        shape: (S, D).

    Returns:
        Noise, [S, D], float64.

    Example:
        >>> noise(0, 1, 2, 0, (2, 3)).shape
        (2, 3)
    """
    key = np.random.SeedSequence(seed, spawn_key=(sequence, block, draw))
    return np.random.Generator(np.random.Philox(key)).standard_normal(shape)


def perturbed(
    h: Array,
    noise: Array,
    eta: float | Array,
    kept: npt.NDArray[np.bool_],
    scale: NoiseScale = "token",
    shape: NoiseShape = "isotropic",
    norm: NoiseNorm = "exact",
) -> Array:
    """Perturb a state: ``h' = h + e``, ``||e_t|| = eta ||h_t||`` (or Frobenius, over kept tokens).

    If only the expectation has this length, ``E ||e_t||^2 = (eta ||h_t||)^2``; isotropic noise
    is then ``e_t ~ N(0, eta^2 ||h_t||^2 / D)``.

    Args:
        h: Residual stream after the block, [S, D].
        noise: Standard normal, [..., S, D], float64.
        eta: Relative magnitude, [..., 1, 1].
        kept: Tokens that take part, [S]; the others are not perturbed.
        scale: "token" or "sequence".
        shape: "isotropic", or "channel": each channel first multiplied by its standard deviation
            over the kept tokens.
        norm: "exact", or "expected".

    Returns:
        The perturbed state, [..., S, D], in the dtype of `h`; noise is scaled in float64.

    Source: arXiv:2606.15161, for Gaussian noise of relative size eta; scale and shape are ours.

    Example:
        >>> h = np.array([[3.0, 4.0]])
        >>> e = perturbed(h, np.array([[1.0, 0.0]]), 0.1, np.array([True])) - h
        >>> float(np.linalg.norm(e).round(12))
        0.5
    """
    exact = h.astype(np.float64)
    spread = np.std(np.compress(kept, exact, axis=-2), axis=0) if shape == "channel" else 1.0
    noise = noise * spread
    measured = noise if norm == "exact" else np.ones_like(exact) * spread
    if scale == "token":
        size, length = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (exact, measured))
    else:
        size, length = (
            np.linalg.norm(np.compress(kept, x, axis=-2), axis=(-2, -1), keepdims=True)
            for x in (exact, measured)
        )
    e = np.where(np.expand_dims(kept, -1), eta * ratio(size, length, 0.0) * noise, 0.0)
    return h + e.astype(h.dtype)


def ratio(top: Array, bottom: Array, otherwise: float = np.nan) -> Array:
    """Divide, with NaN where the divisor is zero.

    Args:
        top: Dividend.
        bottom: Divisor, of the same shape, not negative.
        otherwise: The value in place of NaN.

    Returns:
        The quotient, float64, same shape.

    Example:
        >>> ratio(np.array([1.0, 1.0]), np.array([2.0, 0.0])).tolist()
        [0.5, nan]
    """
    defined = bottom > 0
    return np.where(defined, top / np.where(defined, bottom, 1), otherwise)


@dataclass(frozen=True)
class Deviation:
    """How far a perturbed state is from the clean one, per token (or once per sequence).

    Args:
        drift: ``R = ||h' - h|| / ||h||``, [..., S] or [..., 1]; NaN where h is zero, and for
            tokens that do not take part.
        alignment: ``A = <h', h> / (||h'|| ||h||)``, same shape.
    """

    drift: Array
    alignment: Array


def deviation(
    state: Array, clean: Array, kept: npt.NDArray[np.bool_], norm: Norm = "token"
) -> Deviation:
    """Measure relative drift and alignment after some block.

    R_k = ||h'_k - h_k|| / ||h_k||;  A_k = <h'_k, h_k> / (||h'_k|| ||h_k||)

    Args:
        state: Perturbed residual stream h'_k, [..., S, D].
        clean: Clean residual stream h_k, [..., S, D].
        kept: Tokens that take part, [..., S].
        norm: "token": per token; "sequence": Frobenius over the kept tokens.

    Returns:
        Drift and alignment, float64.

    Source: arXiv:2606.15161, for relative L2 drift and direction; the form per token is ours.

    Example:
        >>> d = deviation(np.array([[3.0, 5.0]]), np.array([[3.0, 4.0]]), np.array([True]))
        >>> d.drift.tolist()
        [0.2]
    """
    a, b = state.astype(np.float64), clean.astype(np.float64)

    def dot(x: Array, y: Array) -> Array:
        each = np.where(kept, np.vecdot(x, y), 0.0)
        return each if norm == "token" else np.sum(each, axis=-1, keepdims=True)

    difference = a - b
    size, size_a, size_b = (np.sqrt(dot(x, x)) for x in (difference, a, b))
    return Deviation(ratio(size, size_b), ratio(dot(a, b), size_a * size_b))
