"""The files that figures and pages are made of, told apart, and the figures of each."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import read_scores
from refimpl.bench.cells import BENCH, Comparison, read_bench
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import EvaluationDocument
from refimpl.loading.files.documents import converted, parsed_object, read_file, reading_document
from refimpl.plot import figures

NAMED = (
    "a whole file of refimpl",
    "scores.json, what refimpl eval -o wrote, or a folder of refimpl bench",
    "run that command again",
)
LARGEST = 1e100  # of numbers that a figure has room for
Drawable = Scores | EvaluationDocument | Comparison


Panel = tuple[str, Callable[..., Any]]
"""The name of a figure, and what draws it."""


def read_result(path: Path) -> Drawable:
    """Read a file of any kind; a folder stands for the comparison or the scores in it."""
    if path.name == BENCH or (path / BENCH).is_file():
        return read_bench(path / BENCH if path.is_dir() else path)
    path = path / "scores.json" if path.is_dir() else path
    with reading_document(path, NAMED):
        document = parsed_object(read_file(path), None, LARGEST)
        if "scores" in document:
            return read_scores(path)
        if {"family", "run", "text"} <= document.keys():
            return converted(document, EvaluationDocument)
        raise ValueError("no scores, evaluation or comparison")


def panels(results: Sequence[Drawable], wanted: str | None = None) -> list[Panel]:
    """All figures of some results, or those of one name."""
    found = [x for x in _panels(results) if wanted in (None, x[0])]
    if not found:
        raise RefimplError(
            f"the files have {'nothing to draw' if wanted is None else f'no {wanted}'}",
            "scores; evaluations of a pruned model; or a comparison of refimpl bench",
            "add such a file, or evaluate a pruned model with refimpl eval -o",
        )
    return found


def _panels(results: Sequence[Drawable]) -> Iterator[Panel]:
    """The figures of scores and comparisons, and one of the evaluations on each text."""
    texts: dict[object, list[EvaluationDocument]] = {}
    for result in results:
        if isinstance(result, Scores):
            yield from _of_scores(result)
        elif isinstance(result, EvaluationDocument):
            texts.setdefault((result.text.sha256, result.text.window), []).append(result)
        elif any(row.pruner for row in result.rows):
            yield "comparison", partial(figures.comparison, result)
    for same in texts.values():
        if any(x.pruning is not None for x in same):
            yield "comparison", partial(figures.comparison, same)


def _of_scores(scores: Scores) -> Iterator[Panel]:
    """A drift at each eta, and what else the scores have."""
    for i in range(len(scores.sweep)):
        yield "drift", partial(figures.drift, scores, which=i)
    yield "coefficients", partial(figures.coefficients, scores)
    if scores.sweep[0].divergence is not None:
        yield "divergence", partial(figures.divergence, scores)
    if scores.made_for.get("base") is not None:  # it is no file
        yield "allocation", partial(figures.allocation, scores)
