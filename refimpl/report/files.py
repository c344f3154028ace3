"""The files that a report is made of, read and held against each other."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.allocation.request import TOO_MUCH
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_file import read_scores
from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.report.checks import must_belong, named
from refimpl.report.inputs import (
    Allocated,
    Evaluated,
    Files,
    Given,
    Measure,
    Pruned,
    Scored,
)
from refimpl.report.scales import MOST
from refimpl.storage.target_checks import RECORD

FORMAT = 1
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, *TOO_MUCH)
TEXT = ("perplexity", "nats_per_token", "bits_per_byte")
QUESTIONS = ("acc", "acc_norm")
KINDS = "a file that refimpl score, allocate, prune or eval wrote"
COUNTS = ("weights", "requested", "pruned", "kept_zeros", "zeros")


def read_files(paths: Sequence[Path]) -> Files:
    """Read files of any kind and see that they belong together.

    Args:
        paths: In the order of the page.

    Returns:
        What is in them, by kind.

    Raises:
        RefimplError: Unreadable, of no known kind, not whole; no scores among them; a pruning or
            an evaluation of a model that no scores are of.
    """
    scored: list[Scored] = []
    pruned: list[Pruned] = []
    evaluated: list[Evaluated] = []
    for path in paths:
        given = _given(path)
        try:
            keys = given.document.keys()
            if given.document.get("format") != FORMAT:
                raise ValueError(f"format {given.document.get('format')!r}, expected {FORMAT}")
            if {"perturbation", "signal_options"} <= keys:
                scored.append(_scored(given))
            elif {"method", "calibration"} <= keys:
                pruned.append(_pruned(given))
            elif {"family", "run"} <= keys and {"text", "choices"} & keys:
                evaluated.append(_evaluated(given))
            else:
                raise ValueError("its fields are those of none of them")
        except RefimplError:
            raise
        except UNREADABLE as error:
            raise _not_ours(path, error) from error
    if not scored:
        raise RefimplError(
            f"{paths[0]}: no scores among the files",
            "one scores.json or more, and beside them pruning.json and evaluations",
            "make one with refimpl score MODEL -o scores.json",
        )
    others: list[Pruned | Evaluated] = [*pruned, *evaluated]
    for other in others:
        must_belong(other, scored)
    return Files(named(scored), named(pruned), named(evaluated))


def _given(path: Path) -> Given:
    """A file and its JSON, with finite numbers only."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RefimplError(
            f"{path}: cannot be read ({error.strerror})", KINDS, "check the path"
        ) from error
    try:
        document = json.loads(
            content.decode("utf-8"),
            parse_float=_finite,
            parse_constant=_finite,
            parse_int=lambda digits: int(digits) if _finite(digits) else 0,
        )
        if not isinstance(document, dict):
            raise TypeError("not an object")
    except UNREADABLE as error:
        raise _not_ours(path, error) from error
    return Given(path, sha256(content).hexdigest(), document)


def _not_ours(path: Path, error: Exception) -> RefimplError:
    """What is not JSON of this program, and why."""
    known = isinstance(error, ValueError) or type(error) is TypeError
    why = str(error).partition("\n")[0] if known else repr(error)
    return RefimplError(
        f"{path}: not a whole file of refimpl ({why})", KINDS, "write it again with that command"
    )


def _finite(text: str) -> float:
    """A number from JSON, where Python would take NaN, Infinity and what no picture holds too."""
    if not abs(number := float(text)) < MOST:
        raise ValueError(f"the number {text}")
    return number


def _scored(given: Given) -> Scored:
    """Scores and the allocations beside them."""
    scores, document = read_scores(given.path), given.document
    etas = document.get("sweep") or [document]
    allocated = tuple(_allocated(found["blocks"], scores) for found in etas)
    _words(document, "base")
    float(document["requested_sparsity"])
    if document["correct"] is not None:
        _words(document, "correct")
    return Scored(given, scores, allocated, scores.model)


def _allocated(blocks: Sequence[Mapping[str, Any]], scores: Scores) -> Allocated:
    """The allocation in the rows of the blocks."""
    for block in blocks:
        if [x["name"] for x in block["linears"]] != list(scores.linears):
            raise ValueError(f"linears of block {block['index']}")

    def column(key: str) -> Array:
        return _numbers([block[key] for block in blocks], 1)

    def linears(key: str) -> Array:
        return _numbers([[x[key] for x in block["linears"]] for block in blocks], 2)

    return Allocated(
        column("base_sparsity"),
        column("corrected_sparsity"),
        column("num_pruned"),
        linears("sparsity"),
        linears("num_pruned"),
    )


def _pruned(given: Given) -> Pruned:
    """What was asked of each linear, and what it lost."""
    document = given.document
    _words(document, "model", "family", "method")
    blocks = [{x["name"]: x for x in block["linears"]} for block in document["blocks"]]
    linears = tuple(blocks[0])

    def every(key: str) -> Array:
        return _numbers([[block[name][key] for name in linears] for block in blocks], 2)

    counts = {key: every(key) for key in COUNTS}
    if any(tuple(block) != linears for block in blocks) or (counts["weights"] <= 0).any():
        raise ValueError("linears that are not the same in every block")
    folder = given.path.parent.name if given.path.name == RECORD else given.path.stem
    how = document["pattern"] or f"{counts['pruned'].sum() / counts['weights'].sum():.2%}"
    name = ": ".join(word for word in (folder, f"{document['method']} {how}") if word)
    return Pruned(given, linears, every("sparsity"), counts, name)


def _evaluated(given: Given) -> Evaluated:
    """What a model is worth."""
    document = given.document
    _words(document, "model", "family")
    if not isinstance(document["num_blocks"], int):
        raise TypeError(f"num_blocks {document['num_blocks']!r}")
    text, questions = document.get("text"), document.get("choices")
    measures: dict[str, Measure] = {}
    for part, names in ((text, TEXT), (questions, QUESTIONS)):
        if part is not None:
            measures |= {
                name: Measure(_known(part[name]), _known(part.get(f"{name}_stderr")))
                for name in names
            }
    return Evaluated(
        given,
        None if text is None else (str(text["source"]), str(text["sha256"])),
        None if questions is None else (str(questions["source"]), str(questions["ids_sha256"])),
        measures,
        str(document["model"]),
    )


def _words(document: Mapping[str, Any], *keys: str) -> None:
    """See that fields are there and are texts."""
    for key in keys:
        if not isinstance(document[key], str):
            raise TypeError(f"{key} {document[key]!r}")


def _known(value: Any) -> float:
    """A number; NaN for null."""
    return float("nan") if value is None else float(value)


def _numbers(values: Any, axes: int) -> Array:
    """Known numbers of a block, or of a block and linear."""
    array = np.array(values, np.float64)
    if array.ndim != axes or not array.size or np.isnan(array).any():
        raise ValueError(f"expected numbers along {axes} axes, got {array.shape}, or null")
    return array
