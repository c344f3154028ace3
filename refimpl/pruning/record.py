"""`pruning.json`, how a model was pruned and what came of it; and what a model's files hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from refimpl.arguments import AtLeastOne, Count, Fraction
from refimpl.loading.config_json import counted_parts
from refimpl.loading.files.documents import (
    Document,
    Named,
    converted,
    parsed_object,
    plain,
    read_file,
    reading_document,
)
from refimpl.loading.samples import TokenFacts
from refimpl.model.model import Model
from refimpl.model.ops import is_zero
from refimpl.model.weight import StoredTensor, Weight, count_bad
from refimpl.pruners.counts import pattern_of
from refimpl.running.files import RECORD
from refimpl.running.provenance import Run

AT_ONCE = 1 << 18  # numbers of a tensor that are checked together
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
    sparsity: Positive  # pruned weights as a fraction of the prunable ones
    base: str | None
    correct: str | None
    strength: int | float | str | None  # of the correction, if there is one
    sha256: str | None = None  # digest of the model that the pruning wrote

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
    sparsity: Positive  # in the allocation
    requested: Count  # weights to prune
    weights: AtLeastOne
    pruned: Count  # weights that the pruner removed, now +0.0
    zeros: Count  # in the new file, read back: pruned + kept_zeros
    kept_zeros: Count  # weights that were kept and are zero
    method: str | None = None  # magnitude, for experts without calibration tokens


class BlockRecord(Document, frozen=True, kw_only=True):
    """The linears of a block."""

    index: Count
    linears: Annotated[list[LinearRecord], Meta(min_length=1)]


class FilesRecord(Document, frozen=True, kw_only=True):
    """What became of the model's files, with sorted names; an older version wrote no digest.

    `companions` were copied; `left_out` is in the model's folder, and not in the new one;
    `ignored` are other parts of a composite checkpoint, whose tensors are copied.
    """

    sha256: str | None = None  # SHA-256 of the new model, as model_sha256 of an evaluation
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
    method: str  # the pruner
    damping: float | None = None  # of SparseGPT's Hessian
    seed: int | None = None  # of the pruner random
    compat: Literal["exact", "peer"]
    pattern: str | None  # n:m, n zeros in m consecutive inputs
    requested_sparsity: Fraction  # total_requested / total_weights
    total_weights: AtLeastOne  # prunable weights, N
    total_requested: Count  # weights to prune
    total_pruned: Count  # with compat exact the same number
    total_zeros: Count  # zeros among the prunable weights of the new files
    calibration: TokenFacts | None  # null for pruners that look at weights alone
    without_tokens: tuple[str, ...] = ()  # experts that saw no calibration token
    allocation: dict[str, Any]  # scores.plan and scores.made_for of scores.json, in one object
    blocks: Annotated[list[BlockRecord], Meta(min_length=1)]
    files: FilesRecord
    before: dict[str, Any] | None  # the record of an earlier pruning of the model
    run: Run
    measured: Measured | None = None  # with --measure

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


@dataclass(frozen=True)
class LinearZeros:
    """Weights of a linear, zeros (0.0 or -0.0), pattern "n:m" or None, and the file's dtype."""

    weights: int
    zeros: int
    pattern: str | None
    dtype: str

    @property
    def sparsity(self) -> float:
        """Zeros as a fraction of all weights."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class Inspection:
    """What a model's files hold.

    Args:
        model: Its name.
        family: Its family.
        blocks: Per block, every linear by name.
        parameters: Numbers in all tensors of the model, each tensor once.
        parameter_bytes: Their size in the files.
        files: Size of each file of weights by its name, bytes.
        requested: The `method`, `sparsity` and `pattern` (or None) that it was pruned to, by its
            `pruning.json`; None without one.
        non_finite: NaN and Inf in the tensors that have some, by the file's names.
        ignored: Other parts of a composite checkpoint, with their number of tensors.
    """

    model: str
    family: str
    blocks: tuple[Mapping[str, LinearZeros], ...]
    parameters: int
    parameter_bytes: int
    files: Mapping[str, int]
    requested: Mapping[str, Any] | None
    non_finite: Mapping[str, int] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def linears(self) -> list[LinearZeros]:
        """All linears of all blocks."""
        return [linear for block in self.blocks for linear in block.values()]

    @property
    def pattern(self) -> str | None:
        """The pattern of every linear, if they all have the same."""
        return common_pattern(self.linears)


def inspect(model: Model) -> Inspection:
    """Count zeros, NaN and Inf as stored, and find the pattern of every linear.

    Args:
        model: From `read_model`.

    Returns:
        What its files hold.

    Raises:
        RefimplError: A `pruning.json` beside it that is damaged.

    Example:
        >>> from refimpl import read_model
        >>> inspection = inspect(read_model("fixtures/llama"))
        >>> inspection.blocks[0]["q_proj"], inspection.requested
        (LinearZeros(weights=1024, zeros=0, pattern=None, dtype='F32'), None)
    """
    requested = None
    if (record := read_record(model)) is not None:
        requested = {name: record[name] for name in ("method", "pattern")}
        requested["sparsity"] = float(record["requested_sparsity"])
    blocks = tuple(
        {name: _zeros(model.weights[f"blocks.{i}.{name}.weight"]) for name in linears}
        for i, linears in enumerate(model.config.linears)
    )
    stored = {weight.stored.name: weight.stored for weight in model.weights.values()}
    bad = {name: _bad(tensor) for name, tensor in stored.items()}
    return Inspection(
        model.name,
        model.config.family,
        blocks,
        sum(prod(tensor.shape) for tensor in stored.values()),
        sum(tensor.nbytes for tensor in stored.values()),
        {file.path.name: file.path.stat().st_size for file in model.files},
        requested,
        {name: count for name, count in bad.items() if count},
        tuple(counted_parts(x.name for x in model.ignored)),
    )


def inspection_document(inspection: Inspection) -> dict[str, Any]:
    """An inspection as one JSON document; what is unknown is null."""
    blocks = [
        {
            "index": i,
            **_totals([*block.values()]),
            "linears": [{"name": x, **vars(y), "sparsity": y.sparsity} for x, y in block.items()],
        }
        for i, block in enumerate(inspection.blocks)
    ]
    facts = {**vars(inspection), **_totals(inspection.linears)}
    del facts["blocks"]
    document: dict[str, Any] = plain({**facts, "blocks": blocks})
    return document


def common_pattern(linears: list[LinearZeros]) -> str | None:
    """The pattern "n:m" that all linears (at least one) have, or None."""
    patterns = {linear.pattern for linear in linears}
    return patterns.pop() if len(patterns) == 1 else None


def _totals(linears: list[LinearZeros]) -> dict[str, Any]:
    """Sums over some linears."""
    weights, zeros = sum(x.weights for x in linears), sum(x.zeros for x in linears)
    return {
        "weights": weights,
        "zeros": zeros,
        "sparsity": zeros / weights,
        "pattern": common_pattern(linears),
    }


def _bad(tensor: StoredTensor) -> int:
    """Count the NaN and Inf of a tensor, some rows at a time."""
    count = (tensor.shape or (1,))[0]
    step = max(1, AT_ONCE * count // max(1, prod(tensor.shape)))
    pieces = (slice(start, start + step) for start in range(0, count, step))
    return sum(count_bad(tensor.rows(rows)) for rows in pieces)


def _zeros(weight: Weight) -> LinearZeros:
    """Count the zeros of one linear."""
    zero = is_zero(weight.as_stored)
    pattern = None if (found := pattern_of(zero)) is None else str(found)
    return LinearZeros(zero.size, int(np.count_nonzero(zero)), pattern, weight.stored.dtype)
