"""`bench.json`: the cells of a comparison as they were measured, and what they share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from refimpl.errors import RefimplError
from refimpl.loading.files.documents import (
    Count,
    Document,
    Named,
    Share,
    Size,
    converted,
    plain,
    read_document,
)

BENCH = "bench.json"
BENCH_FORMAT: Literal[1] = 1
NAMED: Named = (
    "a comparison",
    "a file that refimpl bench wrote",
    "choose another -o, or remove the folder",
)


class BenchText(Document, frozen=True, kw_only=True):
    """A text by name, with the SHA-256 of its file; null for a text that comes with refimpl."""

    name: str
    sha256: str | None


class BenchSettings(Document, frozen=True, kw_only=True, omit_defaults=False):
    """What all cells share; null stands for the default of the model."""

    text: BenchText
    samples: Size
    seq_len: Size | None
    seeds: Size
    measured_on: tuple[BenchText, ...]
    window: Size | None
    windows: Size | None
    dtype: str


class TextNats(Document, frozen=True, kw_only=True):
    """Of each window of a text: the summed -ln p, and the number of predicted tokens."""

    nats: tuple[float, ...]
    tokens: tuple[Size, ...]


class BenchRow(Document, frozen=True, kw_only=True):
    """A cell; the dense model has no pruner and no allocation.

    `passes` are the block passes of one sequence that measuring for the allocation took.
    """

    model: str
    model_sha256: str | None
    pruner: str | None = None
    sparsity: Share = 0.0
    allocation: str | None = None
    allocation_sha256: str | None = None
    seed: Count = 0
    jitter: Count = 0
    texts: tuple[TextNats, ...] = ()
    block_sparsity: tuple[float, ...] = ()
    kappa: float | None = None
    pruned: Count = 0
    passes: float | None = None
    seconds: dict[str, float] | None = None
    tokens_sha256: str | None = None
    versions: dict[str, str] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells this row from all others of a comparison: the first fields."""
        return tuple(getattr(self, name) for name in self.__struct_fields__[:8])


class BenchDocument(Document, frozen=True, kw_only=True):
    """The content of `bench.json`; `against` is the allocation that others are compared with."""

    format: Literal[1]
    settings: BenchSettings
    against: str
    rows: tuple[BenchRow, ...]


def rows_on_file(
    folder: Path, settings: BenchSettings, models: Sequence[tuple[str, str]], force: bool
) -> list[BenchRow]:
    """The rows in an output folder, which this run keeps; a folder of anything else is refused."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return []
    path = folder / BENCH
    if not path.is_file():
        raise RefimplError(
            f"-o {folder} exists, and holds no {BENCH}",
            "a new folder, an empty one, or one that refimpl bench wrote",
            "choose another -o",
        )
    found = read_document(path, NAMED, BENCH_FORMAT, lambda x: converted(x, BenchDocument))
    if force:
        return []
    old, new = (plain(x) for x in (found.settings, settings))
    other = {row.model: row.model_sha256 for row in found.rows}
    what = [f"{x}: {old[x]} there, {new[x]} here" for x in old if old[x] != new[x]]
    what += [f"other weights of {name}" for name, x in models if other.get(name, x) != x]
    if what:
        raise RefimplError(
            f"-o {folder} holds a comparison of another kind ({'; '.join(what)})",
            "the same weights and settings, to which cells are added, or a new folder",
            "choose another -o, or add --force to replace it",
        )
    return [*found.rows]
