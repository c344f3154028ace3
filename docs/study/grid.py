"""What the study runs: every cell by name, and the rule that chooses the second half."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

ETAS = (0.01, 0.1, 1.0)
SIZE = 0.03  # greatest change of a block's sparsity by a correction
SEEDS = (0, 1, 2)  # of shuffles; elsewhere than on SmolLM2, Wanda, 60 %, only the first
REPORTED = ("speech", "novel")
SMOL, GEMMA, QWEN = "SmolLM2-135M-Instruct", "gemma-3-270m", "Qwen2.5-Coder-0.5B-Instruct"
SPARSITY = {SMOL: 0.6, GEMMA: 0.5, QWEN: 0.6}
BASE_OPTIONS: Mapping[str, Mapping[str, float | str]] = {"atp": {"beta": 0.0055}}

Quantity = Literal["none", "absorption", "arrival", "divergence", "line"]


@dataclass(frozen=True)
class Perturbed:
    """How the states were perturbed that a correction was measured with."""

    kind: Literal["gaussian", "pruning"] = "gaussian"
    eta: float | None = None
    sink: Literal["include", "exclude"] = "include"
    noise_scale: Literal["token", "sequence"] = "token"
    noise_shape: Literal["isotropic", "channel"] = "isotropic"

    def __str__(self) -> str:
        if self.kind == "pruning":
            return "pruning"
        return f"eta {self.eta:g}, sink {self.sink}, {self.noise_scale}, {self.noise_shape}"


@dataclass(frozen=True)
class Correction:
    """What is added to the base: a quantity, its size, and for controls what was done to it."""

    quantity: Quantity = "none"
    perturbed: Perturbed | None = None
    size: float = SIZE
    change: str = ""  # "negative" or "shuffled 0"

    def __str__(self) -> str:
        if self.quantity == "none":
            return "none"
        how = "" if self.perturbed is None else f" ({self.perturbed})"
        return f"{self.quantity}{how} at {self.size:g}" + (f", {self.change}" * bool(self.change))


@dataclass(frozen=True)
class Papers:
    """What a cell is measured on.

    Args:
        texts: Names of texts.
        questions: Whether the questions with choices are asked.
    """

    texts: tuple[str, ...]
    questions: bool


@dataclass(frozen=True)
class Cell:
    """One run: a model pruned and measured."""

    model: str = SMOL
    method: Literal["wanda", "sparsegpt"] = "wanda"
    sparsity: float = 0.6
    base: str = "uniform"
    correction: Correction = Correction()

    def __str__(self) -> str:
        return f"{self.model} {self.method} {self.sparsity:g} {self.base} {self.correction}"


NONE, LINE = Correction(), Correction("line")
PRUNING = Perturbed("pruning")
NOISES = tuple(
    Perturbed("gaussian", eta, sink, scale, shape)
    for sink in ("include", "exclude")
    for scale in ("token", "sequence")
    for shape in ("isotropic", "channel")
    for eta in ETAS
)
CORRECTIONS = (
    *(Correction("absorption", noise) for noise in NOISES),
    Correction("absorption", PRUNING),
    Correction("arrival", PRUNING),
    *(Correction("divergence", PRUNING, times * SIZE) for times in (1, 2, 3)),
)


def first_half() -> Iterator[Cell]:
    """All corrections on SmolLM2, Wanda, 60 %, on the bases uniform and OWL."""
    for base in ("uniform", "owl"):
        for correction in (NONE, LINE, *reversed(CORRECTIONS)):
            yield Cell(base=base, correction=correction)


def papers(cell: Cell) -> Papers:
    """What a cell is measured on: the tuning text only where something is chosen on it.

    Questions take as long as the texts and their answers are a coarse measure, so they are not
    asked of Gaussian noise in the first half, nor of controls in the second.
    """
    first = cell in set(first_half())
    noise = cell.correction.perturbed is not None and cell.correction.perturbed.kind == "gaussian"
    texts = ("tuning", *REPORTED) if first else REPORTED
    return Papers(texts, not (cell.correction.change or (first and noise)))


def best_two(tuning: Mapping[Cell, float]) -> tuple[Correction, Correction]:
    """The two corrections that the rest of the study is about.

    The rule, fixed before the runs: the lowest mean, over the bases uniform and OWL, of the nats
    per token on the tuning text. Of a correction that was run at several sizes, only its best size
    takes part.

    Args:
        tuning: Nats per token on the tuning text, by cell of the first half.

    Returns:
        The best, and the second best.
    """
    mean = {
        c: sum(tuning[Cell(base=base, correction=c)] for base in ("uniform", "owl")) / 2
        for c in CORRECTIONS
    }
    best: list[Correction] = []
    for c in sorted(mean, key=lambda c: mean[c]):
        if all(replace(c, size=other.size) != other for other in best):
            best.append(c)
    return best[0], best[1]


def controls(best: tuple[Correction, Correction]) -> Iterator[Correction]:
    """The negatives of the best two, and each shuffled over the blocks."""
    for c in best:
        yield replace(c, change="negative")
        for seed in SEEDS:
            yield replace(c, change=f"shuffled {seed}")


def second_half(best: tuple[Correction, Correction]) -> Iterator[Cell]:
    """The best two and the controls: everywhere else; the shuffles there come last."""
    negative, shuffled = (
        [c for c in controls(best) if c.change.startswith(kind)] for kind in ("neg", "shuf")
    )
    elsewhere = (
        *(Cell(model, sparsity=SPARSITY[model]) for model in (GEMMA, QWEN)),
        *(Cell(sparsity=sparsity) for sparsity in (0.7, 0.5)),
        Cell(method="sparsegpt"),
        *(Cell(base=base) for base in ("alphapruning", "dlp", "atp")),
    )
    for where in (Cell(), Cell(base="owl")):  # the first half has the others
        yield from (replace(where, correction=c) for c in (*negative, *shuffled))
    once = [c for c in shuffled if c.change.endswith(f" {SEEDS[0]}")]
    for some in ((NONE, *best, LINE, *negative), once):
        for where in elsewhere:
            yield from (replace(where, correction=c) for c in some)
