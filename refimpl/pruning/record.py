"""`pruning.json`: how a model was pruned, and what came of it; other fields may be beside."""

from typing import Annotated, Any, Literal

from msgspec import Meta

from refimpl.arguments import AtLeastOne, Count, Fraction
from refimpl.loading.files.documents import (
    Document,
    Named,
    converted,
    parsed_object,
    read_file,
    reading_document,
)
from refimpl.loading.samples import TokenFacts
from refimpl.model.model import Model
from refimpl.running.files import RECORD
from refimpl.running.provenance import Run

RECORD_FORMAT: Literal[1] = 1
NAMED: Named = (
    "a record of a pruning",
    "the record that refimpl prune wrote",
    "prune the model again, or remove this file",
)
Positive = Annotated[float, Meta(ge=0)]


class PruningFacts(Document, frozen=True, kw_only=True, omit_defaults=False):
    """How a model was pruned, as other documents repeat it; an older version wrote no digest."""

    model: str
    method: str
    pattern: str | None
    sparsity: Positive
    base: str | None
    correct: str | None
    strength: int | float | str | None
    sha256: str | None = None

    @property
    def allocation(self) -> str:
        """How sparsity was divided among the blocks: "owl + absorption 0.05", "2:4"."""
        if self.pattern is not None or self.correct is None:
            return self.pattern or self.base or "custom"
        strength = self.strength
        size = f"{strength:g}" if isinstance(strength, int | float) else str(strength)
        return f"{self.base} + {self.correct} {size}"

    @property
    def name(self) -> str:
        """The pruning by what it is: "wanda 60 %, owl + absorption 0.05"."""
        return f"{self.method} {100 * self.sparsity:.3g} %, {self.allocation}"


class LinearRecord(Document, frozen=True, kw_only=True):
    """Weights of a linear: requested, pruned, and zeros that stayed or that the dtype made."""

    name: str
    sparsity: Positive
    requested: Count
    weights: AtLeastOne
    pruned: Count
    zeros: Count
    kept_zeros: Count
    method: str | None = None


class BlockRecord(Document, frozen=True, kw_only=True):
    """The linears of a block."""

    index: Count
    linears: Annotated[list[LinearRecord], Meta(min_length=1)]


class FilesRecord(Document, frozen=True, kw_only=True):
    """What became of the model's files, with sorted names; an older version wrote no digest.

    `companions` were copied; `left_out` is in the model's folder, and not in the new one;
    `ignored` are other parts of a composite checkpoint, whose tensors are copied.
    """

    sha256: str | None = None
    companions: tuple[str, ...]
    left_out: tuple[str, ...]
    ignored: tuple[str, ...] = ()


class Measured(Document, frozen=True, kw_only=True):
    """The text of an evaluation of the model before pruning, and of the new one."""

    before: dict[str, Any]
    after: dict[str, Any]


class Pruning(Document, frozen=True, kw_only=True):
    """What pruning did to a model: the content of `pruning.json`."""

    format: Literal[1]
    model: str
    family: str
    method: str
    damping: float | None = None
    seed: int | None = None
    compat: Literal["exact", "peer"]
    pattern: str | None
    requested_sparsity: Fraction
    total_weights: AtLeastOne
    total_requested: Count
    total_pruned: Count
    total_zeros: Count
    calibration: TokenFacts | None
    without_tokens: tuple[str, ...] = ()
    allocation: dict[str, Any]
    blocks: Annotated[list[BlockRecord], Meta(min_length=1)]
    files: FilesRecord
    before: dict[str, Any] | None
    run: Run
    measured: Measured | None = None

    @property
    def facts(self) -> PruningFacts:
        """What other documents repeat."""
        facts = {name: self.allocation.get(name) for name in ("base", "correct", "strength")}
        facts |= {name: getattr(self, name) for name in ("model", "method", "pattern")}
        facts |= {"sparsity": self.total_pruned / self.total_weights, "sha256": self.files.sha256}
        return converted(facts, PruningFacts, "allocation")


def pruning_record(content: Any) -> Pruning:
    """The record in a JSON value; ValueError if it is not whole."""
    record = converted(content, Pruning)
    _ = record.facts
    return record


def read_record(model: Model) -> dict[str, Any] | None:
    """The content of the `pruning.json` beside a model, which is whole; None without one."""
    path = model.folder / RECORD
    with reading_document(path, NAMED):
        if not path.exists():
            return None
        content = parsed_object(read_file(path), RECORD_FORMAT)
        pruning_record(content)
        return content


def recorded_pruning(model: Model) -> PruningFacts | None:
    """How a model was pruned, by the record beside it; None without one."""
    record = read_record(model)
    return None if record is None else pruning_record(record).facts
