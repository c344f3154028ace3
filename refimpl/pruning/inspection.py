"""What a model's file holds: zeros of every linear, patterns, dtypes and sizes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.file_reading import json_object
from refimpl.model.layout import cut
from refimpl.model.model import Model
from refimpl.model.weight import Weight
from refimpl.pruners.pattern import pattern_of
from refimpl.pruning.copied_files import RECORD

WHAT = "the record that refimpl prune wrote"


@dataclass(frozen=True)
class LinearZeros:
    """Zeros of one linear.

    Args:
        weights: All its weights.
        zeros: Those that are 0.0 or -0.0.
        pattern: "n:m" where every m consecutive inputs have n zeros, or None.
        dtype: The file's name of its dtype, such as "BF16".
    """

    weights: int
    zeros: int
    pattern: str | None
    dtype: str

    @property
    def sparsity(self) -> float:
        """Zeros as a fraction of all weights."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class Requested:
    """What a `pruning.json` says was asked for.

    Args:
        method: Name of the pruner.
        sparsity: Fraction of all prunable weights; None where only a pattern is named.
        pattern: "n:m", or None.
    """

    method: str
    sparsity: float | None
    pattern: str | None


@dataclass(frozen=True)
class Inspection:
    """What a model's file holds.

    Args:
        model: Its name.
        family: Its family.
        blocks: Per block, every linear by name.
        parameters: Numbers in all tensors of the model, each tensor once.
        parameter_bytes: Their size in the files.
        files: Size of each file of weights by its name, bytes.
        requested: What its `pruning.json` says; None without one.
    """

    model: str
    family: str
    blocks: tuple[Mapping[str, LinearZeros], ...]
    parameters: int
    parameter_bytes: int
    files: Mapping[str, int]
    requested: Requested | None

    @property
    def linears(self) -> list[LinearZeros]:
        """All linears of all blocks."""
        return [linear for block in self.blocks for linear in block.values()]

    @property
    def pattern(self) -> str | None:
        """The pattern of every linear, if they all have the same."""
        return common_pattern(self.linears)


def inspect(model: Model) -> Inspection:
    """Count the zeros of every linear as stored, and look for their pattern.

    One linear is read at a time.

    Args:
        model: From `read_model`.

    Returns:
        What its file holds.

    Raises:
        RefimplError: A `pruning.json` beside it that is not whole.

    Source:
        ours.

    Example:
        >>> from refimpl import read_model
        >>> found = inspect(read_model("fixtures/llama"))
        >>> found.blocks[0]["q_proj"], found.requested
        (LinearZeros(weights=1024, zeros=0, pattern=None, dtype='F32'), None)
    """
    requested = _requested(model)
    blocks = tuple(
        {
            name: _zeros(model.weights[f"blocks.{i}.{name}.weight"])
            for name in model.config.linear_shapes
        }
        for i in range(model.config.num_blocks)
    )
    stored = {weight.stored.name: weight.stored.array for weight in model.weights.values()}
    return Inspection(
        model.name,
        model.config.family,
        blocks,
        sum(array.size for array in stored.values()),
        sum(array.nbytes for array in stored.values()),
        {file.path.name: file.path.stat().st_size for file in model.files},
        requested,
    )


def inspection_document(found: Inspection) -> dict[str, Any]:
    """An inspection as one JSON document.

    Args:
        found: From `inspect`.

    Returns:
        Numbers, strings, lists and objects; what is not known is null.
    """
    return {
        "model": found.model,
        "family": found.family,
        "requested": None if found.requested is None else asdict(found.requested),
        "parameters": found.parameters,
        "parameter_bytes": found.parameter_bytes,
        "files": dict(found.files),
        **_totals(found.linears),
        "blocks": [
            {
                "index": i,
                **_totals(list(block.values())),
                "linears": [
                    {"name": name, **asdict(linear), "sparsity": linear.sparsity}
                    for name, linear in block.items()
                ],
            }
            for i, block in enumerate(found.blocks)
        ],
    }


def common_pattern(linears: list[LinearZeros]) -> str | None:
    """The pattern that all of some linears have, or None.

    Args:
        linears: At least one.

    Returns:
        "n:m" or None.
    """
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


def _zeros(weight: Weight) -> LinearZeros:
    """Zeros of one linear, whose pages are given back."""
    stored = weight.stored
    zero = cut(stored.array, weight.layout) == 0
    pattern = pattern_of(zero)
    stored.file.release()
    count = int(np.count_nonzero(zero))
    return LinearZeros(zero.size, count, None if pattern is None else str(pattern), stored.dtype)


def read_record(model: Model) -> Mapping[str, Any] | None:
    """The `pruning.json` beside a model.

    Args:
        model: From `read_model`.

    Returns:
        What it holds, or None where there is none.

    Raises:
        RefimplError: A record that cannot be read, or is no JSON object.
    """
    record = model.folder / RECORD
    try:
        return json_object(record.read_bytes(), str(record), WHAT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RefimplError(
            f"{record}: cannot be read ({error.strerror})", WHAT, "check its permissions"
        ) from error


def _requested(model: Model) -> Requested | None:
    """What the record beside a model says was asked for."""
    if (given := read_record(model)) is None:
        return None
    method, pattern = given.get("method"), given.get("pattern")
    sparsity: Any = given.get("requested_sparsity")
    number = type(sparsity) in (int, float) and 0 <= sparsity <= 1
    if not isinstance(method, str) or not (number or isinstance(pattern, str)):
        raise RefimplError(
            f"{model.folder / RECORD}: names no method, or neither a sparsity nor a pattern",
            WHAT,
            "prune the model again, or remove this file",
        )
    return Requested(method, float(sparsity) if number else None, pattern)
