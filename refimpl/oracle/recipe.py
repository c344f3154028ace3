"""The recipe of a case: what is computed on its model, and which steps are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import inf
from typing import Annotated, Literal

import numpy as np

from refimpl.allocation.request import Correction, Request
from refimpl.allocation.scores import Signal, Signals
from refimpl.arguments import Checked, require
from refimpl.errors import RefimplError
from refimpl.method.perturbation import NoiseNorm, NoiseScale, NoiseShape, Norm, Perturbation, Sink
from refimpl.model.ops import Array
from refimpl.pruners.decision import Pruner
from refimpl.pruners.pattern import parse_pattern

BASES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "owl": ("owl", {}),
    "alphapruning": ("alphapruning", {}),
    "dlp": ("dlp", {}),
    "uniform": ("uniform", {}),
    "atp": ("atp", {}),
    "dlp_median": ("dlp", {"statistic": "median"}),
    "alphapruning_mid": ("alphapruning", {"fit": "mid"}),
    "alphapruning_linear": ("alphapruning", {"unit": "linear"}),
}
"""Bases by the name of their steps: the base of `refimpl allocate`, and its options."""


@dataclass(frozen=True)
class Recipe(Checked):
    """The computation of a case, all of it on the same token ids.

    Args:
        eta: Relative magnitude of the noise.
        coarse_eta: That of a second experiment, which 16 bits resolve.
        draws: Draws of the second experiment.
        noise_scale: "token" or "sequence".
        noise_shape: "isotropic" or "channel".
        norm: "token" or "sequence".
        sink: "include" or "exclude".
        seed: Seed of the noise.
        sparsity: Target over all weights.
        bases: Base allocations, from `BASES`; pruners use the first.
        beta: Step per block of the base `atp`.
        strength: Strength of the correction by absorption.
        max_correction: Largest correction of a block's sparsity.
        pattern: n:m, n zeros in each m consecutive inputs; empty for none.
        damping: Damping of SparseGPT's Hessian.
        shown: Blocks whose scores and weights are among the steps.
        noise_norm: "exact" or "expected".
        only: Shell patterns of the steps, of the forward and the experiments; every step if empty.
        sample_tokens: How many tokens of each sequence the trace points have, evenly spread; all
            if 0.
    """

    eta: float = 0.01
    coarse_eta: float = 0.3
    draws: int = 2
    noise_scale: NoiseScale = "token"
    noise_shape: NoiseShape = "isotropic"
    norm: Norm = "token"
    sink: Sink = "include"
    seed: int = 0
    sparsity: float = 0.5
    bases: tuple[str, ...] = tuple(BASES)
    beta: float = 0.01
    strength: float = 0.1
    max_correction: float = 0.05
    pattern: str = "2:4"
    damping: float = 0.01
    shown: tuple[Annotated[int, 0, inf], ...] = (0,)
    noise_norm: NoiseNorm = "exact"
    only: tuple[str, ...] = ()
    sample_tokens: int = 0

    def __post_init__(self) -> None:
        """Refuse what no perturbation, base or pruner accepts."""
        super().__post_init__()
        if not 0 < len(self.bases) == len({*self.bases}):
            raise RefimplError(
                f"bases {' '.join(self.bases)}", "one or more, each once", "omit --bases"
            )
        _ = self.coarse_perturbation, *map(self.request, self.bases), Pruner(damping=self.damping)
        _ = self.pattern and parse_pattern(self.pattern)

    @property
    def perturbation(self) -> Perturbation:
        """The perturbation of the recipe."""
        return Perturbation(
            "gaussian", (self.eta,), self.noise_scale, self.noise_shape, self.norm, self.sink,
            seed=self.seed, noise_norm=self.noise_norm,
        )  # fmt: skip

    def asks(self, *steps: str) -> bool:
        """Whether one of some steps is asked for."""
        return not self.only or any(fnmatchcase(step, p) for step in steps for p in self.only)

    def perturbs(self, prefix: str, blocks: int) -> bool:
        """Whether an experiment is asked for: all its steps are, if one is."""
        ends = [f"{i}.{kind}" for i in range(blocks) for kind in ("drift", "alignment")]
        states = [(prefix or "perturbed.") + end for end in ends]
        return self.asks(*states, f"{prefix}absorption_coefficient", f"{prefix}stderr")

    def sampled(self, x: Array, tokens: int) -> Array:
        """The tokens that a trace point of the case has, of so many, [..., tokens, D]."""
        if not self.sample_tokens or x.ndim < 2 or x.shape[-2] != tokens:
            return x
        places = np.linspace(0, tokens - 1, min(self.sample_tokens, tokens)).round()
        return np.take(x, np.unique(places).astype(int), axis=-2)

    @property
    def coarse_perturbation(self) -> Perturbation:
        """The same at an eta that 16 bits resolve, and with several draws."""
        return replace(self.perturbation, eta=(self.coarse_eta,), draws=self.draws)

    def request(self, base: str, correct: Correction = "absorption") -> Request:
        """The request for a base allocation and its correction."""
        require(base, Literal[tuple(BASES)], "base")
        name, options = BASES[base]
        return Request(
            name,
            {**options, "beta": self.beta} if name == "atp" else options,
            sparsity=self.sparsity,
            correct=correct,
            strength=self.strength,
            max_correction=self.max_correction,
        )

    def signals(self, arrays: Mapping[str, Array], base: str) -> Signals:
        """The signal of a base among some steps, with the options that it was measured with."""
        request, array = self.request(base), arrays.get(signal_of(base))
        if request.record.needs is None or array is None:
            return {}
        options = request.record.of_signal(request.options)
        return {request.record.name: Signal(options, {"signal": array})}


def signal_of(base: str) -> str:
    """The step that a base is made from; none has this name for bases without a signal."""
    return ("alphapruning" if base == "alphapruning_linear" else base) + ".signal"
