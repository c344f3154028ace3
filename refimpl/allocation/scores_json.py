"""`scores.json`: tables of its fields, from which the document is written and read back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import inf, isnan
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.dataclass_json import filled, to_json
from refimpl.allocation.request import TOO_MUCH, Request
from refimpl.allocation.scores import Absorption, Probes, PrunedAt, Scores, Signal, StoredAllocation
from refimpl.bases.base import base_named
from refimpl.errors import RefimplError, unreadable
from refimpl.loading.files.file_reading import parsed_json, read_file
from refimpl.method.perturbation import Perturbation
from refimpl.model.config import Linears, linear_sizes
from refimpl.model.ops import Array
from refimpl.running.provenance import Run, TokenFacts

Json = Mapping[str, Any]

FORMAT = 2
LARGEST = 1 << 24  # no linear has more rows or columns; their products fit into 64 bits
NOT_WHOLE = (ValueError, LookupError, TypeError, AttributeError, *TOO_MUCH)

# The fields of the document's head, in order, and the attribute that holds each; `absorption` and
# `allocation` are those of the first eta.
REQUEST = {
    "base": "allocation.request.record.name",
    "base_options": "allocation.request.options",
    "requested_sparsity": "allocation.request.sparsity",
    "correct": "allocation.request.correct",
    "strength": "allocation.request.strength",
    "max_correction": "allocation.request.max_correction",
    "correction_scale": "allocation.request.correction_scale",
    "kappa": "allocation.request.kappa",
    "lo": "allocation.request.lo",
    "hi": "allocation.request.hi",
    "compat": "allocation.request.compat",
}
HEAD = {
    "model": "scores.model",
    "family": "scores.family",
    "num_blocks": "scores.num_blocks",
    "eta": "absorption.eta",
    "seed": "scores.plan.seed",
    "dtype": "scores.run.dtype",
    "perturbation": "scores.plan.kind",
    "noise_scale": "scores.plan.noise_scale",
    "noise_shape": "scores.plan.noise_shape",
    "noise_norm": "scores.plan.noise_norm",
    "norm": "scores.plan.norm",
    "sink": "scores.plan.sink",
    "draws": "scores.plan.draws",
    "subset": "scores.plan.subset",
    "probe_delta": "scores.plan.probe_delta",
    "probe_pruner": "scores.plan.probe_pruner",
    "probe_damping": "scores.plan.probe_damping",
    "units": "scores.plan.units",
    "probe_samples": "scores.plan.probe_samples",
    "budget_minutes": "scores.budget_minutes",
    "measured_samples": "scores.measured_samples",
    "tokens": "scores.tokens",
    "linears": "scores.shapes",
    **REQUEST,
}


@dataclass(frozen=True)
class Column:
    """A field of every block.

    Args:
        key: Its key in the block's object; `signals.x` is x in the object `signals`, `linears.x`
            is x in every object of the list `linears`.
        array: The attribute that holds it for all blocks.
        form: A number per block [L], one per linear too [L, linears], or the numbers from the
            block itself to the last one, of [L, L].
        unknown: Whether null may stand for NaN.
        whole: Whether its numbers are integers.
        omitted: Whether a block without a value has no such key, in place of null.
    """

    key: str
    array: str
    form: Literal["block", "linears", "triangle"] = "block"
    unknown: bool = False
    whole: bool = False
    omitted: bool = False


# In order. Read back are those that are fields of a dataclass; the others follow from these.
COLUMNS = (
    Column("base_sparsity", "allocation.base_sparsity"),
    Column("corrected_sparsity", "allocation.corrected_sparsity"),
    Column("num_pruned", "allocation.num_pruned", whole=True),
    Column("linears.sparsity", "allocation.linear_sparsity", "linears"),
    Column("linears.num_pruned", "allocation.linear_pruned", "linears", whole=True),
    Column("absorption_coefficient", "absorption.coefficient", unknown=True),
    Column("absorption_stderr", "absorption.stderr", unknown=True),
    Column("absorption_stderr_reason", "stderr_reason", omitted=True),
    Column("log_absorption", "absorption.logarithm", unknown=True),
    Column("tokens_left_out", "absorption.left_out", whole=True),
    Column("tokens_excluded_as_sinks", "scores.sinks", whole=True),
    Column("drift", "absorption.drift", "triangle", unknown=True),
    Column("alignment", "absorption.alignment", "triangle", unknown=True),
    Column("arrival", "absorption.arrival", unknown=True),
    Column("divergence", "absorption.divergence", unknown=True),
)


def document(scores: Scores, allocations: Sequence[Allocation]) -> dict[str, Any]:
    """Describe scores and their allocations, one per eta, as one JSON document."""
    each = [
        SimpleNamespace(scores=scores, absorption=absorption, allocation=allocation)
        for absorption, allocation in zip(scores.sweep, allocations, strict=True)
    ]
    content = {
        "format": FORMAT,
        **head(each[0], HEAD),
        **_totals(allocations[0]),
        "perturbed_at": to_json(scores.pruned_at),
        "probes": to_json(scores.probes),
        "growth": _growth(allocations[0]),
        "signals": {name: _signal_json(x, scores) for name, x in scores.signals.items()},
        "run": to_json(scores.run),
        "blocks": _rows(each[0]),
    }
    if len(each) > 1:
        content["sweep"] = [
            {"eta": at.absorption.eta, **_totals(at.allocation), "blocks": _rows(at)} for at in each
        ]
    return content


def head(at: SimpleNamespace, keys: Iterable[str]) -> dict[str, Any]:
    """Some fields of `HEAD`; an allocation that is not what its request leads to is refused."""
    at.allocation.check_seal()
    return {key: to_json(attrgetter(HEAD[key])(at)) for key in keys}


def _totals(allocation: Allocation) -> dict[str, Any]:
    return {
        "total_weights": allocation.total_weights,
        "total_pruned": allocation.total_pruned,
        "clipped_share": float(allocation.clipped.mean()),
    }


def _growth(allocation: Allocation) -> dict[str, Any] | None:
    """How the errors grow that the allocation is made of; None unless its strength is measured."""
    if (grows := allocation.growth) is None:
        return None
    common = {"kappa": grows.common_rate, "kappa_quartiles": grows.quartiles}
    return to_json(common) | to_json(grows) | {"fits": to_json(grows.fits)}


def _signal_json(signal: Signal, scores: Scores) -> dict[str, Any]:
    """Options and numbers of a signal; of linears, only of those that a block has."""
    values: dict[str, Any] = dict(signal.values)
    for name, x in signal.values.items():
        if x.ndim == 2:
            values[name] = [row[: len(own)] for row, own in zip(x, scores.linears, strict=True)]
    return to_json({"options": signal.options, "values": values})


def _rows(at: SimpleNamespace) -> list[dict[str, Any]]:
    """The object of every block, with what was found and allocated at one eta."""
    scores: Scores = at.scores
    at.stderr_reason = _stderr_reasons(scores, at.absorption)
    weights = scores.linear_sizes.sum(axis=1).tolist()
    rows: list[dict[str, Any]] = [{"index": i, "num_weights": n} for i, n in enumerate(weights)]
    for column in COLUMNS:
        array, (group, _, key) = attrgetter(column.array)(at), column.key.rpartition(".")
        for i, row in enumerate(rows):
            value: Any = None if array is None else to_json(array[i])
            if column.omitted and value is None:
                continue
            if column.form == "linears" and value is not None:
                value = value[: len(scores.linears[i])]
            if group == "linears":
                linears = scores.linears[i].items()
                names = [{"name": name, "shape": [*shape]} for name, shape in linears]
                for linear, number in zip(row.setdefault(group, names), value, strict=True):
                    linear[key] = number
            else:
                part = row.setdefault(group, {}) if group else row
                part[key] = value[i:] if column.form == "triangle" else value
    return rows


def _stderr_reasons(scores: Scores, absorption: Absorption) -> list[str | None]:
    """Why each block's standard error is unknown; None if it is known."""
    reasons: list[str | None] = []
    for r, stderr in zip(absorption.coefficient, absorption.stderr, strict=True):
        once = scores.tokens.samples < 2 or (scores.plan.subset is not None and not isnan(r))
        why = "fewer than two sequences" if once else "no token with a drift"
        reasons.append(why if isnan(stderr) else None)
    return reasons


def read_scores(path: str | Path) -> Scores:
    """Read scores back from the file that `refimpl score -o` wrote."""
    path = Path(path)
    with whole_scores(path):
        return scores_of(parsed(read_file(path)))


@contextmanager
def whole_scores(path: Path) -> Iterator[None]:
    """Refuse a file that cannot be read, or whose contents are not those of a `scores.json`."""
    try:
        yield
    except OSError as error:
        raise unreadable(path, error, "a scores.json") from error
    except NOT_WHOLE as error:
        why = str(error).partition("\n")[0] if isinstance(error, ValueError) else repr(error)
        raise RefimplError(
            f"{path}: not a whole scores.json ({why})",
            "a file written by refimpl score -o",
            "run refimpl score again",
        ) from error


def parsed(content: bytes, limit: float = inf, version: int | None = FORMAT) -> Json:
    """Parse a JSON document of this format, or of any; its numbers are smaller than a limit."""
    document = parsed_json(content.decode("utf-8"), limit)
    if not isinstance(document, dict):
        raise TypeError("not an object")
    if version is not None and document.get("format") != version:
        raise ValueError(f"format {document.get('format')!r}, expected {version}")
    return document


def sweep_of(document: Json) -> Sequence[Json]:
    """The objects that hold the blocks at each eta: the document itself if there is one eta."""
    return document.get("sweep") or [document]


def scores_of(document: Json) -> Scores:
    """The scores in a document; ValueError, LookupError or TypeError if they are not whole."""
    blocks, at, sweep = document["blocks"], document["perturbed_at"], sweep_of(document)
    shapes = {name: (int(out), int(width)) for name, (out, width) in document["linears"].items()}
    if {len(blocks), *(len(result["blocks"]) for result in sweep)} != {document["num_blocks"]}:
        raise ValueError(f"{len(blocks)} blocks, expected {document['num_blocks']}")
    if not shapes or not all(0 < n < LARGEST for shape in shapes.values() for n in shape):
        raise ValueError(f"linears {shapes}")
    linears = tuple({x["name"]: shapes[x["name"]] for x in row["linears"]} for row in blocks)
    if {name for block in linears for name in block} != shapes.keys():
        raise ValueError("a linear that no block has")
    if (document["perturbation"] == "pruning") != (at is not None):
        raise ValueError(f"perturbation {document['perturbation']}, perturbed_at {at}")

    etas = [None if at is not None else float(result["eta"]) for result in sweep]
    plan_eta = {} if at is not None else {"eta": tuple(etas)}  # pruning has none
    return filled(
        Scores,
        _attributes(document, "scores"),
        **_arrays(Scores, "scores", blocks, linears),
        linears=linears,
        tokens=filled(TokenFacts, document["tokens"]),
        plan=filled(Perturbation, _attributes(document, "scores.plan"), **plan_eta),
        sweep=tuple(
            Absorption(eta, **_arrays(Absorption, "absorption", result["blocks"], linears))
            for eta, result in zip(etas, sweep, strict=True)
        ),
        signals={name: _signal(name, x, linears) for name, x in document["signals"].items()},
        run=filled(Run, document["run"]),
        pruned_at=None
        if at is None
        else filled(PrunedAt, at, linear_pruned=np.array(at["linear_pruned"], np.int64)),
        probes=_probes(document, linears),
        made_for=_made_for(document),
    )


def _made_for(document: Json) -> dict[str, Any]:
    """The request of the allocation in a document, by field; a base unknown here is None."""
    made, base = _attributes(document, "allocation.request"), document["base"]
    if unknown := isinstance(base, str) and base_named(base) is None:
        base, made["options"] = Request.base, {}
    return vars(filled(Request, made | {"base": base})) | ({"base": None} if unknown else {})


def _signal(name: str, signal: Json, linears: Linears) -> Signal:
    """The signal of a base: options and, for every block or every linear, numbers."""
    arrays = dict[str, Array]()
    for key, values in signal["values"].items():
        form: Any = "linears" if isinstance(values[0], list) else "block"
        column = Column(f"signals.{name}", "", form, unknown=bool(arrays), omitted=True)
        arrays[key] = _array(column, values, linears)
    plain = {*map(type, signal["options"].values())} <= {int, float, str}
    if not plain or {len(x) for x in arrays.values()} != {len(linears)}:
        raise ValueError(f"signals.{name}: not a number for every block, or an option that is none")
    return Signal(signal["options"], arrays)


def _probes(document: Json, linears: Linears) -> Probes | None:
    """The probes in a document, three per unit, if there are some."""
    if (probes := document.get("probes")) is None:
        return None
    column, shape = Column("probes", "", unknown=True), (3, len(linears))
    if document.get("units") == "linears":
        shape = (3, *linear_sizes(linears).shape)
    arrays = {
        name: _numbers(column, probes[name], shape)
        for name in ("sparsity", "arrival", "divergence")
        if probes[name] is not None
    }
    return Probes(**arrays)


def stored_allocation(rows: Sequence[Json], linears: Linears) -> StoredAllocation:
    """The allocation in the objects of all blocks, whose linears must have these names."""
    for i, (row, names) in enumerate(zip(rows, linears, strict=True)):
        if [linear["name"] for linear in row["linears"]] != list(names):
            raise ValueError(f"linears of block {i}")
    return StoredAllocation(**_arrays(StoredAllocation, "allocation", rows, linears))


def _attributes(document: Json, owner: str) -> dict[str, Any]:
    """The fields of the head that are attributes of this owner, by attribute."""
    attributes = {}
    for key, path in HEAD.items():
        of, _, name = path.rpartition(".")
        if of == owner:
            attributes[name] = document[key]
    return attributes


def _arrays(kind: type, owner: str, rows: Sequence[Json], linears: Linears) -> dict[str, Array]:
    """The arrays of a dataclass from its columns; an optional one that no block has is left out."""
    optional = {field.name: field.default is None for field in fields(kind)}
    arrays = {}
    for column in COLUMNS:
        of, _, name = column.array.rpartition(".")
        if of == owner and name in optional:
            values = [_value(column, row) for row in rows]
            if not optional[name] or any(value is not None for value in values):
                arrays[name] = _array(column, values, linears)
    return arrays


def _value(column: Column, row: Json) -> Any:
    """The value of a column in the object of one block."""
    group, _, key = column.key.rpartition(".")
    if group != "linears":
        owner = row[group] if group else row
        return owner.get(key) if column.omitted else owner[key]
    if column.omitted and not any(key in linear for linear in row[group]):
        return None
    return [linear[key] for linear in row[group]]


def _array(column: Column, values: Sequence[Any], linears: Linears) -> Array:
    """The array of a column from its values in all blocks, which have these linears.

    A row of a block that has fewer linears than another ends in zeros, or in unknown numbers.
    """
    count = len(values)
    if column.form == "triangle":
        array = np.full((count, count), np.nan)
        for i, row in enumerate(values):
            array[i, i:] = _numbers(column, row, (count - i,))
        return array
    per_linear = column.form == "linears"
    rows = values if per_linear else [[value] for value in values]
    names: Linears = linears if per_linear else [{"": (1, 1)}] * count
    missing = np.nan if column.unknown or column.omitted else 0
    shape, kind = (count, max(map(len, names))), np.int64 if column.whole else np.float64
    array = np.full(shape, missing, kind)
    for i, row in enumerate(rows):
        numbers = _numbers(column, row, (len(names[i]),))
        for name, number in zip(names[i], row, strict=True):
            if column.whole and type(number) is not int:
                at = f"blocks.{i}.{name}".rstrip(".")
                raise ValueError(f"{at}: {number!r} as {column.key}, expected a whole number")
        array[i, : len(numbers)] = row if column.whole else numbers
    return array if per_linear else array[:, 0]


def _numbers(column: Column, values: Any, shape: tuple[int, ...]) -> Array:
    """Numbers of a shape; NaN for null, if the column may have unknown numbers."""
    array = np.array(values, np.float64)
    if array.shape != shape or (np.isnan(array).any() and not column.unknown):
        raise ValueError(
            f"{column.key}: expected {shape} numbers, got {array.shape}, or null among them"
        )
    return array
