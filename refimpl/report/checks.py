"""Files of a report held against each other: names that differ, models that are the same."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from refimpl.errors import RefimplError
from refimpl.report.inputs import (
    Evaluated,
    Pruned,
    Scored,
)

N = TypeVar("N", Scored, Pruned, Evaluated)


def named(files: list[N]) -> tuple[N, ...]:
    """Files with names that differ: to the same names, that of the file is added, and a count."""
    often, seen = Counter(one.name for one in files), Counter[str]()
    found = []
    for one in files:
        name = one.name if often[one.name] == 1 else f"{one.name} ({one.given.path.stem})"
        seen[name] += 1
        found.append(replace(one, name=name if seen[name] == 1 else f"{name} #{seen[name]}"))
    return tuple(found)


def must_belong(other: Pruned | Evaluated, scored: Sequence[Scored]) -> None:
    """Refuse what is of no model that was scored: family, blocks and linears tell."""
    document = other.given.document
    blocks = len(other.sparsity) if isinstance(other, Pruned) else document["num_blocks"]
    for one in scored:
        scores = one.scores
        same = document["family"] == scores.family and blocks == scores.num_blocks
        if same and isinstance(other, Pruned):
            same = list(other.linears) == list(scores.linears) and bool(
                (other.counts["weights"] == scores.linear_sizes).all()
            )
        if same:
            return
    scores = scored[0].scores
    raise RefimplError(
        f"{other.given.path}: of another model ({document['model']}, family "
        f"{document['family']}, {blocks} blocks)",
        f"the model of {scored[0].given.path} ({scores.model}, family {scores.family}, "
        f"{scores.num_blocks} blocks, with linears of the same names and sizes)",
        "give the scores of that model as well, or leave the file away",
    )
