"""The cells of a comparison, and `bench.jsonl`: the settings, then a row per finished cell."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from refimpl.allocation.request import Correction, Request
from refimpl.arguments import AtLeastOne, Checked, Count, Fraction, common_option, option
from refimpl.bases.base import bases
from refimpl.bases.uniform import UNIFORM
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import (
    Document,
    Named,
    converted,
    parsed_object,
    plain,
    reading_document,
)
from refimpl.loading.files.file_reading import read_file
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.wanda import WANDA
from refimpl.running.file_system import file_digest
from refimpl.running.files import write_text

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


class BenchText(Document, frozen=True, kw_only=True):
    """A text by name, with the SHA-256 of its file; null for a text that comes with refimpl."""

    name: str
    sha256: str | None


class BenchSettings(Document, frozen=True, kw_only=True, omit_defaults=False):
    """What all cells share; null stands for the default of `score`, `prune` and `eval`."""

    text: BenchText
    samples: AtLeastOne | None
    seq_len: AtLeastOne | None
    seeds: AtLeastOne
    measured_on: tuple[BenchText, ...]
    window: AtLeastOne | None
    windows: AtLeastOne | None
    dtype: str


class TextNats(Document, frozen=True, kw_only=True):
    """Of each window of a text: the summed -ln p, and the number of predicted tokens."""

    nats: tuple[float, ...]
    tokens: tuple[AtLeastOne, ...]


class BenchRow(Document, frozen=True, kw_only=True):
    """A cell; the dense model has no pruner and no allocation.

    `passes` are the block passes of one sequence that measuring for the allocation took.
    """

    model: str
    model_sha256: str | None
    pruner: str | None = None
    sparsity: Fraction = 0.0
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
        """What tells this row from all others of a comparison."""
        which = self.allocation, self.allocation_sha256
        return self.model, self.pruner, self.sparsity, which, self.seed, self.jitter

    def __str__(self) -> str:
        if self.pruner is None:
            return f"{self.model} dense"
        jitter = f" jitter {self.jitter}" if self.jitter else ""
        where = f"{self.model} {self.pruner} {100 * self.sparsity:.6g} %"
        return f"{where} {self.allocation} seed {self.seed}{jitter}"


@dataclass(frozen=True)
class Grid(Checked):
    """What is compared."""

    sparsity: tuple[float, ...] = common_option(
        (0.5, 0.6, 0.7), "Fractions of all prunable weights to prune, 0 to 1.", "X,Y"
    )
    bases: str = common_option(
        HEADLINE,
        "Allocations: names of bases, files with a sparsity per block or linear, corrections "
        f"({', '.join(CORRECTIONS)}) of the uniform base, or BASE+CORRECTION. An option of a base "
        "follows a colon, as in lsa:beta=0.1. The others are compared with the first.",
        "A,B",
    )
    pruner: str = common_option(WANDA.name, "Pruners.", "A,B")
    seeds: AtLeastOne = common_option(
        1,
        "Sets of calibration tokens with which every cell is repeated, each with its own samples "
        "of the text.",
        "N",
    )
    jitter: Count = option(
        0,
        "Reruns of the first allocation with all sparsities moved by about 1e-6. The spread is "
        "the noise floor, below which no difference is a finding.",
        "N",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for row, allocation in self.cells("", ""):
            if allocation is not None:
                allocation.request(row.sparsity)
                PrunerOptions(str(row.pruner))

    def cells(self, model: str, sha256: str) -> Iterator[tuple[BenchRow, NamedAllocation | None]]:
        """The row of the dense model, and of each cell with its allocation, before measuring.

        The first seed comes first, and the reruns of the first allocation last.
        """
        yield BenchRow(model=model, model_sha256=sha256), None
        pruned = [(p, s) for p in dict.fromkeys(_words(self.pruner)) for s in self.sparsity]
        settings = [*dict.fromkeys(pruned)]
        every = [*dict.fromkeys(map(named_allocation, _words(self.bases)))]
        runs = [(n, 0, at, x) for n in range(self.seeds) for at in settings for x in every]
        runs += [(0, n, at, every[0]) for n in range(1, self.jitter + 1) for at in settings]
        for seed, jitter, (pruner, sparsity), x in runs:
            row: Any = {"pruner": pruner, "sparsity": sparsity, "seed": seed, "jitter": jitter}
            row |= {"allocation": x.name, "allocation_sha256": x.sha256}
            yield BenchRow(model=model, model_sha256=sha256, **row), x


def _words(text: str) -> list[str]:
    """Words separated by commas."""
    if not all(words := [word.strip() for word in text.split(",")]):
        raise RefimplError(f"an empty name in {text!r}", "names separated by commas", "remove it")
    return words


BENCH, TABLE = "bench.jsonl", "table.md"
NAMED: Named = ("a comparison", "a file that refimpl bench wrote", "choose another -o")


class BenchHeader(Document, frozen=True, kw_only=True):
    """The first line of the file."""

    format: Literal[2]
    settings: BenchSettings


@dataclass(frozen=True)
class Comparison:
    """The content of `bench.jsonl`; `against` is the allocation that others are compared with."""

    settings: BenchSettings
    rows: tuple[BenchRow, ...]
    against: str = ""

    def __post_init__(self) -> None:
        first = next((str(x.allocation) for x in self.rows if x.allocation), "")
        object.__setattr__(self, "against", self.against or first)


def read_bench(path: Path, against: str = "") -> Comparison:
    """Read a comparison back; a last line that a killed run did not finish is no row."""
    with reading_document(path, NAMED):
        head, *lines = read_file(path).split(b"\n")[:-1] or [b""]
        header = converted(parsed_object(head, 2), BenchHeader)
        rows = [converted(parsed_object(line, None), BenchRow) for line in lines]
        if len({row.key for row in rows}) < len(rows):
            raise ValueError("a cell has two rows")
        return Comparison(header.settings, tuple(rows), against)


def rows_on_file(folder: Path, settings: BenchSettings, weights: Mapping[str, str]) -> Comparison:
    """The comparison in an output folder, to which a run adds rows, or a new one."""
    path = folder / BENCH
    if not path.is_file():
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise RefimplError(
                f"-o {folder} exists, and holds no {BENCH}",
                "a new folder, an empty one, or one that refimpl bench wrote",
                "choose another -o",
            )
        folder.mkdir(exist_ok=True)
        write_text(path, _line(BenchHeader(format=2, settings=settings)))
        return Comparison(settings, ())
    found = read_bench(path)
    old, new = (plain(x) for x in (found.settings, settings))
    other = {row.model: row.model_sha256 for row in found.rows}
    what = [f"{x}: {old[x]} there, {new[x]} here" for x in old if old[x] != new[x]]
    what += [f"other weights of {name}" for name, x in weights.items() if other.get(name, x) != x]
    if what:
        raise RefimplError(
            f"-o {folder} holds a comparison of another kind ({'; '.join(what)})",
            "the same weights and settings, to which cells are added, or a new folder",
            "choose another -o",
        )
    whole = read_file(path).rpartition(b"\n")[0]
    os.truncate(path, len(whole) + 1)
    return found


def _line(document: Document) -> str:
    """A document on a line of its own."""
    return json.dumps(plain(document), allow_nan=False) + "\n"


def append_row(folder: Path, row: BenchRow) -> None:
    """Write a finished cell, which is on the disk when this returns."""
    with (folder / BENCH).open("a", encoding="utf-8") as file:
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())
