"""The cells of a comparison: allocations by their names, at every sparsity and with every seed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from refimpl.allocation.request import Correction, Request
from refimpl.arguments import Checked, Seed, common_option, option
from refimpl.bases.base import bases
from refimpl.bases.uniform import UNIFORM
from refimpl.errors import RefimplError
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.wanda import WANDA
from refimpl.storage.file_system import file_digest

CORRECTIONS = get_args(Correction)
HEADLINE = f"{UNIFORM.name},divergence"


@dataclass(frozen=True)
class NamedAllocation:
    """An allocation as a comparison spells it: BASE[:OPTION=VALUE...][+CORRECTION], or a file."""

    name: str
    base: str
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    correct: Any = None
    sha256: str | None = None

    def request(self, sparsity: float) -> Request:
        """What is asked for at a sparsity."""
        return Request(self.base, self.options, sparsity, self.correct)


def named_allocation(name: str) -> NamedAllocation:
    """Read the name of an allocation; a file's name is that of the base."""
    base, plus, correct = name.rpartition("+")
    if name in CORRECTIONS:
        base, correct = UNIFORM.name, name
    elif not plus or correct not in CORRECTIONS or Path(name).is_file():
        base, correct = name, ""
    sha256 = file_digest(Path(base)) if base not in bases() and Path(base).is_file() else None
    base, *pairs = [base] if sha256 else base.split(":")
    if odd := [pair for pair in pairs if "=" not in pair]:
        raise RefimplError(
            f"base {name!r}: {odd[0]!r} is no option with a value",
            "BASE:OPTION=VALUE, for example lsa:beta=0.1",
            f"use {base}:{odd[0]}=VALUE",
        )
    options = dict(pair.split("=", 1) for pair in pairs)
    shown = Path(name).name if sha256 else name
    return NamedAllocation(shown, base, options, correct or None, sha256)


@dataclass(frozen=True)
class BenchCell:
    """A model pruned in one way: a row of the comparison."""

    pruner: str
    sparsity: float
    allocation: NamedAllocation
    seed: int
    jitter: int = 0

    def __str__(self) -> str:
        jitter = f" jitter {self.jitter}" if self.jitter else ""
        where = f"{self.pruner} {100 * self.sparsity:.4g} %"
        return f"{where} {self.allocation.name} seed {self.seed}{jitter}"


@dataclass(frozen=True)
class Grid(Checked):
    """What is compared."""

    sparsity: tuple[float, ...] = common_option(
        (0.5, 0.6, 0.7), "Fractions of all prunable weights to prune, 0 to 1.", "X,Y"
    )
    bases: str = common_option(
        HEADLINE,
        "Allocations: names of bases, files with a sparsity per block or linear, corrections "
        "(absorption, arrival, divergence) of the uniform base, or BASE+CORRECTION. An option of a "
        "base follows a colon, as in lsa:beta=0.1.",
        "A,B",
    )
    pruners: str = common_option(WANDA.name, "Pruners.", "A,B")
    seeds: int = common_option(
        1,
        "Sets of calibration tokens with which every cell is repeated, each with its own samples "
        "of the text.",
        "N",
    )
    jitter: Seed = option(
        0,
        "Reruns of the baseline with all sparsities moved by about 1e-6. The spread is the "
        "noise floor, below which no difference is a finding.",
        "N",
    )
    against: str | None = option(
        None, "The allocation that the others are compared with. Default: the first.", "A"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.seeds < 1:
            raise RefimplError(f"seeds {self.seeds}", "1 or more", "use --seeds 1")
        if self.baseline not in self.allocations:
            names = ", ".join(x.name for x in self.allocations)
            raise RefimplError(
                f"against {self.against!r} is not compared", names, "add it to --bases"
            )
        for cell in self.cells():
            cell.allocation.request(cell.sparsity)
            PrunerOptions(cell.pruner)

    @property
    def allocations(self) -> list[NamedAllocation]:
        """Every allocation, once."""
        return [*dict.fromkeys(map(named_allocation, _words(self.bases)))]

    @property
    def baseline(self) -> NamedAllocation:
        """The allocation that the others are compared with."""
        return named_allocation(self.against) if self.against else self.allocations[0]

    def cells(self) -> Iterator[BenchCell]:
        """All cells; the first seed comes first, and the reruns of the baseline last."""
        places = [(p, s) for p in dict.fromkeys(_words(self.pruners)) for s in self.sparsity]
        for seed in range(self.seeds):
            for pruner, sparsity in dict.fromkeys(places):
                for allocation in self.allocations:
                    yield BenchCell(pruner, sparsity, allocation, seed)
        for n in range(1, self.jitter + 1):
            for pruner, sparsity in dict.fromkeys(places):
                yield BenchCell(pruner, sparsity, self.baseline, 0, n)


def _words(text: str) -> list[str]:
    """Words separated by commas."""
    if not all(words := [word.strip() for word in text.split(",")]):
        raise RefimplError(f"an empty name in {text!r}", "names separated by commas", "remove it")
    return words
