"""The cells of a comparison, and `bench.jsonl`: the settings, then a row per finished cell."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from refimpl.allocation.request import Correction, Request
from refimpl.arguments import (
    AtLeastOne,
    AtLeastZero,
    Checked,
    Fraction,
    common_option,
    option,
)
from refimpl.bases.base import bases
from refimpl.bases.uniform import UNIFORM
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import (
    Document,
    converted,
    parsed_object,
    plain,
    read_file,
    reading_document,
)
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.wanda import WANDA
from refimpl.running.outputs import check_file, write_text

CORRECTIONS = get_args(Correction)
BENCH, TABLE_FILE, BENCH_FORMAT = "bench.jsonl", "table.md", 2
_ERROR_TEXT = (
    "a comparison",
    "what refimpl bench wrote, or a new folder",
    "choose another -o",
)


def requested_by_name(name: str, sparsity: float) -> Request:
    """What the name of an allocation asks for: BASE[:OPTION=VALUE...][+CORRECTION]."""
    whole, _, correct = (
        f"{UNIFORM.name}+{name}" if name in CORRECTIONS else name
    ).partition("+")
    base, *pairs = whole.split(":")
    if base not in bases():
        known = [*bases(), *CORRECTIONS]
        odd = "has no options" if base in known else "is no base allocation"
        expected = ", ".join(bases() if base in known else known)
        step = "use one of these; for a file, use refimpl prune --allocation FILE and refimpl eval"
        raise RefimplError(f"base {base!r} {odd}", expected, step)
    options = {pair.partition("=")[0]: pair.partition("=")[2] for pair in pairs}
    return Request(base, options, sparsity, cast(Any, correct or None))


def pruner_by_name(name: str, seed: int) -> PrunerOptions:
    """What the name of a pruner asks for: PRUNER[+refit]."""
    pruner, plus, refit = name.partition("+")
    if plus and refit != "refit":
        raise RefimplError(
            f"pruner {name!r}", "PRUNER, or PRUNER+refit", "correct the name"
        )
    return PrunerOptions(pruner, seed=seed, refit=bool(plus))


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
    """A cell; the dense model has no pruner and no allocation."""

    model: str
    model_sha256: str | None
    pruner: str | None = None
    sparsity: Fraction = 0.0
    allocation: str | None = None
    seed: AtLeastZero = 0
    jitter: AtLeastZero = 0
    texts: tuple[TextNats, ...] = ()
    block_sparsity: tuple[float, ...] = ()
    pruned: AtLeastZero = 0
    tokens_sha256: str | None = None
    versions: dict[str, str] | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells this row from all others of a comparison."""
        return (
            self.model,
            self.pruner,
            self.sparsity,
            self.allocation,
            self.seed,
            self.jitter,
        )


@dataclass(frozen=True)
class Grid(Checked):
    """What is compared."""

    sparsity: tuple[float, ...] = common_option(
        (0.5, 0.6, 0.7), "Fractions of all prunable weights to prune, 0 to 1.", "X,Y"
    )
    bases: str = common_option(
        f"{UNIFORM.name},divergence",
        f"Allocations: names of bases, corrections ({', '.join(CORRECTIONS)}) of the uniform base, "
        "or BASE+CORRECTION. The others are compared with the first.",
        "A,B",
    )
    options: Mapping[str, float | str] = option(
        dict,
        "Option of the last base; may be repeated.",
        "NAME=VALUE",
        name="base_option",
    )
    pruner: str = common_option(WANDA.name, "Pruners, or PRUNER+refit.", "A,B")
    seeds: AtLeastOne = common_option(
        1,
        "Sets of calibration tokens with which every cell is repeated, each with its own samples "
        "of the text.",
        "N",
    )
    jitter: AtLeastZero = option(
        0,
        "Reruns of the first allocation with all sparsities moved by about 1e-6. The spread is "
        "the noise floor, below which no difference is a finding.",
        "N",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if ":" in self.bases:
            step = "pass options of the last base by `base_option=NAME=VALUE`"
            raise RefimplError(f"`bases={self.bases}`", "names of allocations", step)
        for cell in [*self.cells("", "")][1:]:
            requested_by_name(str(cell.allocation), cell.sparsity)
            pruner_by_name(str(cell.pruner), cell.seed)

    def cells(self, model: str, sha256: str) -> Iterator[BenchRow]:
        """The row of the dense model, of each cell, and of reruns, before measuring."""
        yield BenchRow(model=model, model_sha256=sha256)
        (*others, last), pruners = _words(self.bases), _words(self.pruner)
        base, *correction = last.partition("+")  # as in lsa:beta=0.1+divergence
        pairs = (f":{name}={value}" for name, value in self.options.items())
        every = [*others, "".join([base, *pairs, *correction])]
        settings = [(p, s) for p in pruners for s in dict.fromkeys(self.sparsity)]
        runs = [
            (n, 0, at, x) for n in range(self.seeds) for at in settings for x in every
        ]
        runs += [
            (0, n, at, every[0]) for n in range(1, self.jitter + 1) for at in settings
        ]
        for seed, jitter, (pruner, sparsity), name in runs:
            which: Any = {"pruner": pruner, "sparsity": sparsity, "allocation": name}
            yield BenchRow(
                model=model, model_sha256=sha256, **which, seed=seed, jitter=jitter
            )


def _words(text: str) -> list[str]:
    """Words separated by commas, each once."""
    if not all(words := [word.strip() for word in text.split(",")]):
        raise RefimplError(
            f"an empty name in {text!r}", "names separated by commas", "remove it"
        )
    return [*dict.fromkeys(words)]


@dataclass(frozen=True)
class Comparison:
    """The content of `bench.jsonl`."""

    settings: BenchSettings
    rows: tuple[BenchRow, ...]

    @property
    def baseline(self) -> str:
        """The allocation that others are compared with: the first."""
        return next((x.allocation for x in self.rows if x.allocation), "")


def read_bench(path: Path) -> Comparison:
    """Read a comparison back; a last line that a killed run did not finish is no row."""
    with reading_document(path, _ERROR_TEXT):
        head, *lines = read_file(path).split(b"\n")[:-1] or [b""]
        settings = converted(
            parsed_object(head, BENCH_FORMAT).get("settings"), BenchSettings
        )
        rows = tuple(converted(parsed_object(line), BenchRow) for line in lines)
        if len({row.key for row in rows}) < len(rows):
            raise ValueError("a cell has two rows")
        if {row.model for row in rows} != {
            row.model for row in rows if row.pruner is None
        }:
            raise ValueError("a model was not measured before pruning")
        return Comparison(settings, rows)


def rows_on_file(
    folder: Path, settings: BenchSettings, weights: Mapping[str, str]
) -> Comparison:
    """The comparison in an output folder, to which a run adds rows, or a new one."""
    path = folder / BENCH
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise RefimplError(
                f"-o {folder} exists, and holds no {BENCH}", *_ERROR_TEXT[1:]
            )
        folder.mkdir(exist_ok=True)
        write_text(path, _line({"format": BENCH_FORMAT, "settings": settings}))
        return Comparison(settings, ())
    check_file(folder / TABLE_FILE, {}, force=True)
    stored = read_bench(path)
    old, new = (plain(x) for x in (stored.settings, settings))
    what = [f"{x}: {old[x]} there, {new[x]} here" for x in old if old[x] != new[x]]
    other = {
        x.model
        for x in stored.rows
        if weights.get(x.model, x.model_sha256) != x.model_sha256
    }
    what += [f"other weights of {name}" for name in other]
    if what:
        raise RefimplError(
            f"-o {folder} holds a comparison of another kind ({'; '.join(what)})",
            "the same weights and settings, to which cells are added, or a new folder",
            "choose another -o",
        )
    os.truncate(path, read_file(path).rindex(b"\n") + 1)
    return stored


def _line(content: Any) -> str:
    """A document on a line of its own."""
    return json.dumps(plain(content), allow_nan=False) + "\n"


def append_row(folder: Path, row: BenchRow) -> None:
    """Write a finished cell, which is on the disk when this returns."""
    with (folder / BENCH).open("a", encoding="utf-8") as file:
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())
