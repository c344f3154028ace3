"""Models whose weights go by decisions of the test: for tests of what is in the files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from msgspec.structs import asdict

from refimpl import Model
from refimpl.model.ops import Array
from refimpl.pruning.pruned_files import PrunedFiles
from refimpl.pruning.pruned_linears import PrunedLinear, stored_weight


@dataclass(frozen=True)
class Decision:
    """Which weights of a linear stay, [out, in], and new values of those, if they get any."""

    keep: Array
    new: Array | None = None


Decisions = Mapping[int, Mapping[str, Decision]]


def pruned_linears(
    model: Model, block: int, linears: Mapping[str, Decision]
) -> Iterator[tuple[str, PrunedLinear]]:
    for name, x in linears.items():
        yield name, PrunedLinear(x.keep, stored_weight(model, block, name, x.keep, x.new))


def write_pruned(model: Model, into: Path, decisions: Decisions) -> Any:
    """Write a model, pruned as decided, into a folder; the counts, and what became of its files."""
    into.mkdir(exist_ok=True)
    files = PrunedFiles(model, into)
    blocks = sorted(decisions.items())
    counts = [files.write(i, pruned_linears(model, i, x)) for i, x in blocks]
    return SimpleNamespace(counts=counts, **asdict(files.record()))
