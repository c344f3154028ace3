"""The recipe of a case: what is computed on its model, and which steps are kept."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from msgspec import Meta

from refimpl.allocation.request import Noise, Request
from refimpl.arguments import (
    Checked,
    Fraction,
    common_option,
    option,
    require,
    same_option,
)
from refimpl.errors import RefimplError
from refimpl.method.perturbation import NoiseNorm, Sink
from refimpl.oracle.case_folders import matching
from refimpl.pruners.counts import parse_pattern
from refimpl.pruners.decision import PrunerOptions

BASES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "owl": ("owl", {}),
    "alphapruning": ("alphapruning", {}),
    "dlp": ("dlp", {}),
    "uniform": ("uniform", {}),
    "atp": ("atp", {}),
    "dlp_median": ("dlp", {"statistic": "median"}),
    "alphapruning_mid": ("alphapruning", {"fit": "mid"}),
}
"""Bases by the name of their steps: the base of `refimpl allocate`, and its options."""


@dataclass(frozen=True)
class Recipe(Checked):
    """The computation of a case, all of it on the same token ids.

    Args:
        coarse_eta: Relative magnitude of the noise in a second experiment, which 16 bits resolve.
        draws: Draws of the second experiment.
        bases: Base allocations, from `BASES`; pruners use the first.
        beta: Step per block of the base `atp`.
    """

    eta: float = option(
        0.01, "Size of the noise as a fraction of the state's norm.", "X"
    )
    coarse_eta: float = 0.3
    draws: int = 2
    sink: Sink = same_option(Noise, "sink")
    seed: int = option(0, "Seed of the noise.", "N")
    sparsity: Fraction = same_option(Request, "sparsity")
    bases: tuple[str, ...] = tuple(BASES)
    beta: float = 0.01
    strength: float = 0.1
    max_correction: float = 0.05
    pattern: str = option("2:4", "Pattern N:M; empty for none.", "N:M", name="nm")
    damping: float = 0.01
    shown: tuple[Annotated[int, Meta(ge=0)], ...] = option(
        (0,),
        "Block whose scores and weights are steps; may be repeated. Default: 0.",
        "N",
    )
    noise_norm: NoiseNorm = same_option(Noise, "noise_norm")
    only: tuple[str, ...] = common_option(
        (),
        "Compute these steps of the forward and the experiments alone: a shell pattern such as "
        "'blocks.*'; may be repeated. Default: every step of the method.",
        "PATTERN",
    )

    def __post_init__(self) -> None:
        """Refuse what no perturbation, base or pruner accepts."""
        super().__post_init__()
        if not 0 < len(self.bases) == len({*self.bases}):
            raise RefimplError(
                f"bases {' '.join(self.bases)}",
                "one or more, each once",
                "omit `bases`",
            )
        _ = self.coarse_perturbation, *map(self.request, self.bases)
        _ = (
            PrunerOptions(damping=self.damping),
            self.pattern and parse_pattern(self.pattern),
        )

    @property
    def perturbation(self) -> Noise:
        """The perturbation of the recipe."""
        return Noise(
            eta=(self.eta,), sink=self.sink, seed=self.seed, noise_norm=self.noise_norm
        )

    def asks(self, *steps: str) -> bool:
        """Whether one of some steps is asked for."""
        return not self.only or bool(matching(steps, self.only))

    def perturbs(self, prefix: str, blocks: int) -> bool:
        """Whether an experiment is asked for: all its steps are, if one is."""
        ends = [f"{i}.{kind}" for i in range(blocks) for kind in ("drift", "alignment")]
        states = [(prefix or "perturbed.") + end for end in ends]
        return self.asks(*states, f"{prefix}absorption_coefficient", f"{prefix}stderr")

    @property
    def coarse_perturbation(self) -> Noise:
        """The same at an eta that 16 bits resolve, and with several draws."""
        return replace(self.perturbation, eta=(self.coarse_eta,), draws=self.draws)

    def request(self, base: str) -> Request:
        """The request for a base allocation and its correction."""
        require(base, Literal[tuple(BASES)], "base")
        name, shipped = BASES[base]
        options: dict[str, Any] = {**shipped} | (
            {"beta": self.beta} if name == "atp" else {}
        )
        limits = {
            x: getattr(self, x) for x in ("sparsity", "strength", "max_correction")
        }
        return Request(name, options, correct="absorption", **limits)
