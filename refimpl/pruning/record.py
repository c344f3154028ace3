"""`pruning.json`, how a model was pruned and what came of it; what its files hold; its masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from msgspec.structs import replace as replaced

from refimpl.allocation.scores_json import Targets
from refimpl.arguments import AtLeastOne, AtLeastZero, Bools, Fraction, NotNegative
from refimpl.errors import RefimplError
from refimpl.loading.config_json import counted_parts
from refimpl.loading.files import documents
from refimpl.loading.samples import TokenFacts
from refimpl.model.model import Model
from refimpl.model.ops import is_zero
from refimpl.model.weight import Weight, count_bad, paste
from refimpl.running.outputs import RECORD
from refimpl.running.provenance import Run

RECORD_FORMAT: Literal[1] = 1
_ERROR_TEXT: documents.ErrorText = (
    "a record of a pruning",
    "the record that refimpl prune wrote",
    "prune the model again, or remove this file",
)


class PruningFacts(documents.Document, frozen=True, kw_only=True, omit_defaults=False):
    """How a model was pruned, as other documents repeat it; an older version wrote no digest."""

    model: str
    method: str
    pattern: str | None
    sparsity: NotNegative  # pruned weights as a fraction of the prunable ones
    base: str | None
    correct: str | None
    strength: int | float | str | None  # of the correction, if there is one
    sha256: str | None = None  # digest of the model that the pruning wrote

    @property
    def allocation(self) -> str:
        """How sparsity was divided among the blocks: "owl + absorption 0.05", "2:4"."""
        if self.pattern is not None or self.correct is None:
            return self.pattern or self.base or "custom"
        size = (
            self.strength
            if isinstance(self.strength, str | None)
            else f"{self.strength:g}"
        )
        return f"{self.base} + {self.correct} {size}"

    @property
    def name(self) -> str:
        """The pruning by what it is: "wanda 60 %, owl + absorption 0.05"."""
        return f"{self.method} {100 * self.sparsity:.3g} %, {self.allocation}"


class LinearRecord(documents.Document, frozen=True, kw_only=True):
    """Weights of a linear: requested, pruned, and zeros of the file: ``pruned + kept_zeros``.

    -0.0 is a zero. Weights that stay are zero if they were, or if the stored dtype made them so.
    The method is None if it is that of the pruning.
    """

    name: str
    sparsity: NotNegative  # in the allocation
    requested: AtLeastZero  # weights to prune
    weights: AtLeastOne
    pruned: AtLeastZero  # weights that the pruner removed, now +0.0
    zeros: AtLeastZero  # in the new file, read back: pruned + kept_zeros
    kept_zeros: AtLeastZero  # weights that were kept and are zero
    method: str | None = None  # magnitude, for experts without calibration tokens


class BlockRecord(documents.Document, frozen=True, kw_only=True):
    """The linears of a block."""

    index: AtLeastZero
    linears: Annotated[list[LinearRecord], Meta(min_length=1)]


class FilesRecord(documents.Document, frozen=True, kw_only=True):
    """The new model's digest, which an older version did not write."""

    # SHA-256 of the new model, as model_sha256 of an evaluation
    sha256: str | None = None


class Pruning(documents.Document, frozen=True, kw_only=True):
    """What pruning did to a model: the content of `pruning.json`."""

    format: Literal[1]
    model: str
    family: str
    method: str  # the pruner
    damping: float | None = None  # of SparseGPT's Hessian
    seed: int | None = None  # of the pruner random
    refit: bool = False  # whether the weights that stay have refitted values
    compat: Literal["exact", "peer"]
    pattern: str | None  # n:m, n zeros in m consecutive inputs
    requested_sparsity: Fraction  # total_requested / total_weights
    total_weights: AtLeastOne  # prunable weights, N
    total_requested: AtLeastZero  # weights to prune
    total_pruned: AtLeastZero  # with compat exact the same number
    total_zeros: AtLeastZero  # zeros among the prunable weights of the new files
    calibration: TokenFacts | None  # null for pruners that look at weights alone
    without_tokens: tuple[str, ...] = ()  # experts that saw no calibration token
    allocation: dict[
        str, Any
    ]  # scores.plan and scores.made_for of scores.json, in one object
    blocks: Annotated[list[BlockRecord], Meta(min_length=1)]
    files: FilesRecord
    before: dict[str, Any] | None  # the record of an earlier pruning of the model
    run: Run

    @property
    def facts(self) -> PruningFacts:
        """What other documents repeat."""
        facts = {
            name: self.allocation.get(name) for name in ("base", "correct", "strength")
        }
        facts |= {name: getattr(self, name) for name in ("model", "pattern")}
        facts["method"] = f"{self.method} + refit" if self.refit else self.method
        facts |= {
            "sparsity": self.total_pruned / self.total_weights,
            "sha256": self.files.sha256,
        }
        return documents.converted(facts, PruningFacts, "allocation")


def pruning_record(
    model: Model,
    targets: Targets,
    counts: Sequence[Mapping[str, LinearRecord]],
    **facts: Any,
) -> Pruning:
    """What was asked for, and what came of it: the counts of every block's linears."""
    asked, share = targets.linear_pruned, targets.linear_sparsity
    blocks, idle = list[BlockRecord](), dict[str, None]()
    for i, block in enumerate(counts):
        every = [
            replaced(linear, sparsity=float(share[i, j]), requested=int(asked[i, j]))
            for j, linear in enumerate(block.values())
        ]
        blocks.append(BlockRecord(index=i, linears=every))
        idle |= {
            f"blocks.{i}.{x.name.rpartition('.')[0]}": None for x in every if x.method
        }
    linears = [x for block in blocks for x in block.linears]
    weights, total = sum(x.weights for x in linears), int(asked.sum())
    return Pruning(
        format=RECORD_FORMAT,
        model=model.name,
        family=model.config.family,
        compat=targets.compat,
        pattern=None if targets.pattern is None else str(targets.pattern),
        requested_sparsity=total / weights,
        total_weights=weights,
        total_requested=total,
        total_pruned=sum(x.pruned for x in linears),
        total_zeros=sum(x.zeros for x in linears),
        without_tokens=tuple(idle),
        allocation=dict(targets.origin),
        blocks=blocks,
        **facts,
    )


def read_record(model: Model) -> dict[str, Any] | None:
    """The content of the `pruning.json` beside a model, which is whole; None without one."""
    path = model.folder / RECORD
    with documents.reading_document(path, _ERROR_TEXT):
        if not path.exists():
            return None
        content = documents.parsed_object(documents.read_file(path), RECORD_FORMAT)
        _ = documents.converted(content, Pruning).facts
        return content


def recorded_pruning(model: Model) -> PruningFacts | None:
    """How a model was pruned, by the record beside it; None without one."""
    record = read_record(model)
    return None if record is None else documents.converted(record, Pruning).facts


@dataclass(frozen=True)
class LinearZeros:
    """Weights of a linear, zeros (0.0 or -0.0) among them, and the file's dtype."""

    weights: int
    zeros: int
    dtype: str

    @classmethod
    def of(cls, linears: Sequence["LinearZeros"]) -> "LinearZeros":
        """Those of several linears together."""
        dtypes = " ".join(dict.fromkeys(x.dtype for x in linears))
        return cls(
            sum(x.weights for x in linears), sum(x.zeros for x in linears), dtypes
        )

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
        requested: `method`, `sparsity` and `pattern` of its `pruning.json`; None without one.
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
    non_finite: Mapping[str, int]
    ignored: tuple[str, ...] = ()

    @property
    def linears(self) -> list[LinearZeros]:
        """All linears of all blocks."""
        return [linear for block in self.blocks for linear in block.values()]


def inspect(model: Model) -> Inspection:
    """Count the zeros of every linear, and NaN and Inf of every tensor, as stored.

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
        (LinearZeros(weights=1024, zeros=0, dtype='F32'), None)
    """
    record, names = read_record(model), ("method", "pattern", "requested_sparsity")
    requested = record and {x.removeprefix("requested_"): record[x] for x in names}

    def zeros(weight: Weight) -> LinearZeros:
        zero = is_zero(weight.as_stored)
        return LinearZeros(zero.size, int(np.count_nonzero(zero)), weight.stored.dtype)

    stored = {weight.stored.name: weight.stored for weight in model.weights.values()}
    bad = {
        name: sum(map(count_bad, tensor.pieces())) for name, tensor in stored.items()
    }
    return Inspection(
        model.name,
        model.config.family,
        tuple(
            {
                name: zeros(model.weights[f"blocks.{i}.{name}.weight"])
                for name in linears
            }
            for i, linears in enumerate(model.config.linears)
        ),
        sum(prod(tensor.shape) for tensor in stored.values()),
        sum(tensor.nbytes for tensor in stored.values()),
        {file.path.name: file.path.stat().st_size for file in model.files},
        requested,
        {name: count for name, count in bad.items() if count},
        tuple(counted_parts(x.name for x in model.ignored)),
    )


def inspection_document(inspection: Inspection) -> dict[str, Any]:
    """An inspection as one JSON document; what is unknown is null."""

    def sums(linears: Sequence[LinearZeros]) -> dict[str, Any]:
        every = LinearZeros.of(linears)
        return {
            "weights": every.weights,
            "zeros": every.zeros,
            "sparsity": every.sparsity,
        }

    blocks = [
        {
            "index": i,
            **sums([*block.values()]),
            "linears": [
                {"name": x, **vars(y), "sparsity": y.sparsity} for x, y in block.items()
            ],
        }
        for i, block in enumerate(inspection.blocks)
    ]
    return dict(
        documents.plain(
            {**vars(inspection), **sums(inspection.linears), "blocks": blocks}
        )
    )


def masks(
    dense: Model, pruned: Model, names: Literal["refimpl", "transformers"] = "refimpl"
) -> dict[str, Bools]:
    """Return which weights of every linear stayed in a pruned model.

    A weight was pruned if it is zero now and was not before. Of one that was zero before, the
    counts of `pruning.json` say whether it was pruned; without that record, it stayed.

    Args:
        dense: The model before.
        pruned: The model after, by refimpl or by another program.
        names: `refimpl` for `blocks.0.q_proj.weight`, [out, in]; `transformers` for the names and
            shapes of the file's tensors, of which other parts stay.

    Returns:
        Masks by name, bool, True = stays.

    Raises:
        RefimplError: Models of other sizes; a linear of whose old zeros only some were pruned; a
            damaged record.

    Example:
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> masks(model, model)["blocks.0.q_proj.weight"].all()
        np.True_
    """
    if dense.config.linears != pruned.config.linears:
        raise RefimplError(
            f"{dense.name} and {pruned.name}, whose linears differ",
            "a model and what a pruning made of it",
            "pass the model that was pruned first",
        )
    record, found = read_record(pruned), dict[str, Bools]()
    for i, linears in enumerate(dense.config.linears):
        for j, name in enumerate(linears):
            key = f"blocks.{i}.{name}.weight"
            count = (
                None if record is None else record["blocks"][i]["linears"][j]["pruned"]
            )
            weight = pruned.weights[key]
            keep = _stayed(dense.weights[key], weight, count, f"{pruned.name}: {key}")
            if names == "refimpl":
                found[key] = keep
            else:
                stored = found.setdefault(
                    weight.stored.name, np.ones(weight.stored.shape, bool)
                )
                paste(stored, keep, weight.layout)
    return found


def _stayed(dense: Weight, pruned: Weight, count: int | None, what: str) -> Bools:
    """The weights of a linear that stayed, of which so many were pruned."""
    old, new = dense.as_stored, pruned.as_stored
    zero: Bools = is_zero(new)
    lost = zero & ~is_zero(old)
    if count == np.count_nonzero(zero):
        return ~zero
    others_unchanged = np.array_equal(new, np.where(lost, 0, old))
    if count is None or (others_unchanged and count == np.count_nonzero(lost)):
        return ~lost
    raise RefimplError(
        f"{what}: {np.count_nonzero(zero)} weights are zero, of which {count} were pruned, and the "
        "files do not say which",
        "a linear that had no zeros before, or of whose zeros all were pruned, or none",
        "use the zeros of the pruned model as the mask",
    )
