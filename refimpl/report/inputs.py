"""What a report is made of: scores, prunings and evaluations, each with its file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl.allocation.scores import Scores
from refimpl.model.ops import Array


@dataclass(frozen=True)
class Given:
    """A file as it was given.

    Args:
        path: Where it is.
        sha256: Of its bytes.
        document: What is in it.
    """

    path: Path
    sha256: str
    document: Mapping[str, Any]


@dataclass(frozen=True)
class Allocated:
    """The allocation at one eta.

    Args:
        base: Base sparsity per block, [L].
        corrected: Sparsity per block, [L].
        pruned: Weights to prune per block, [L].
        linear_sparsity: Per block and linear, [L, linears].
        linear_pruned: Weights to prune per block and linear, [L, linears].
    """

    base: Array
    corrected: Array
    pruned: Array
    linear_sparsity: Array
    linear_pruned: Array


@dataclass(frozen=True)
class Scored:
    """A `scores.json`.

    Args:
        given: The file.
        scores: What was measured.
        allocated: What was asked for, one per eta.
        name: What to call it.
    """

    given: Given
    scores: Scores
    allocated: tuple[Allocated, ...]
    name: str


@dataclass(frozen=True)
class Pruned:
    """A `pruning.json`.

    Args:
        given: The file.
        linears: Names of the linears of a block, in order.
        sparsity: What the allocation gives each block and linear, [L, linears].
        counts: By name, of each block and linear, [L, linears].
        name: What to call it.
    """

    given: Given
    linears: tuple[str, ...]
    sparsity: Array
    counts: Mapping[str, Array]
    name: str


@dataclass(frozen=True)
class Measure:
    """A measured number.

    Args:
        value: The number; NaN where unknown.
        error: Its standard error, or NaN.
    """

    value: float
    error: float


@dataclass(frozen=True)
class Evaluated:
    """What `refimpl eval -o` wrote.

    Args:
        given: The file.
        text: Which text, windows and BOS perplexity is over; None where it was not measured.
        questions: Which questions accuracy is over; None where it was not measured.
        measures: By name.
        name: What to call it.
    """

    given: Given
    text: tuple[str, str] | None
    questions: tuple[str, str] | None
    measures: Mapping[str, Measure]
    name: str


@dataclass(frozen=True)
class Files:
    """Everything that a report is made of; there are scores, the rest may be missing."""

    scored: tuple[Scored, ...]
    pruned: tuple[Pruned, ...]
    evaluated: tuple[Evaluated, ...]
