"""The files that figures and pages are made of, and the figures of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import FORMAT, scores_document
from refimpl.bench.cells import BENCH, Comparison, read_bench
from refimpl.bench.tables import bench_curves
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import EvaluationDocument
from refimpl.loading.files.documents import converted, parsed_object, plain, reading_document
from refimpl.loading.files.file_reading import read_file
from refimpl.plot import figures
from refimpl.plot.curves import Curve, Curves
from refimpl.pruning.record import pruning_record
from refimpl.running.target_checks import RECORD

NAMED = (
    "a whole file of refimpl",
    "a file that refimpl score, prune, eval or bench wrote",
    "run that command again",
)

LARGEST = 1e100  # of numbers that a figure has room for


@dataclass(frozen=True)
class Panel:
    """A figure that is drawn when it is asked for: its name, and what it shows."""

    name: str
    caption: str
    draw: Callable[..., Any]


@dataclass(frozen=True)
class Results:
    """The content of some files, by kind; evaluations before and after a pruning are among them."""

    scores: Sequence[Scores]
    evaluations: Sequence[EvaluationDocument]
    benches: Sequence[Comparison]


def read_results(paths: Sequence[Path]) -> Results:
    """Read files of any kind, in any order; a folder stands for what refimpl wrote into it."""
    found = [x for path in paths for x in _read(path)]
    return Results(
        [x for x in found if isinstance(x, Scores)],
        [x for x in found if isinstance(x, EvaluationDocument)],
        [x for x in found if isinstance(x, Comparison)],
    )


def _read(path: Path) -> list[Any]:
    """What one file has; a record of a pruning that was not measured has nothing."""
    if (path / BENCH).is_file() or path.name == BENCH:
        return [read_bench(path / BENCH if path.is_dir() else path)]
    path = path / RECORD if path.is_dir() else path
    with reading_document(path, NAMED):
        document = parsed_object(read_file(path), None, LARGEST)
        keys = document.keys()
        if "scores" in keys:
            if document.get("format") != FORMAT:
                raise ValueError(f"format {document.get('format')!r}, expected {FORMAT}")
            return [scores_document(document).scores]
        if {"method", "calibration"} <= keys:
            return [*_measured(path, document)]
        if {"family", "run"} <= keys and "text" in keys:
            return [converted(document, EvaluationDocument)]
        raise ValueError("no command writes these fields")


def _measured(path: Path, document: Mapping[str, Any]) -> Iterator[EvaluationDocument]:
    """The evaluations before and after a pruning, if it was measured."""
    record = pruning_record(document)
    if record.measured is None:
        return
    for at, pruned, name in (
        ("before", document.get("before"), record.model),
        ("after", document, path.absolute().parent.name),
    ):
        text = dict(getattr(record.measured, at))
        facts = {"format": 1, "model": name, "family": record.family, "text": text}
        facts |= {"num_blocks": len(record.blocks), "model_sha256": text.pop("model_sha256", None)}
        facts |= {"run": plain(record.run), "dtype": record.run.dtype}
        facts["pruning"] = None if pruned is None else plain(pruning_record(pruned).facts)
        yield converted(facts, EvaluationDocument)


def panels(results: Results, wanted: str | None = None) -> list[Panel]:
    """All figures of some files, or those of one name."""
    found = [x for x in _panels(results) if wanted in (None, x.name)]
    if not found:
        has = "nothing to draw" if wanted is None else f"no {wanted}"
        raise RefimplError(
            f"the files have {has}",
            "scores; evaluations of a pruned model; or a comparison of refimpl bench",
            "add such a file, or evaluate a pruned model with refimpl eval -o",
        )
    return found


def _panels(results: Results) -> Iterator[Panel]:
    for scores in results.scores:
        model = scores.model
        for result in scores.sweep:
            at = "" if result.eta is None else f", eta {result.eta:g}"
            draw = partial(figures.drift, scores, eta=result.eta)
            yield Panel("drift", f"Mean relative drift after each block of {model}{at}", draw)
        caption = f"Absorption coefficient of each block of {model}"
        yield Panel("coefficients", caption, partial(figures.coefficients, scores))
        if scores.sweep[0].divergence is not None:
            caption = f"Divergence of each block of {model}, pruned alone"
            yield Panel("divergence", caption, partial(figures.divergence, scores))
        if scores.made_for.get("base") is not None:  # it is no file
            caption = f"Sparsity of each block of {model}"
            yield Panel("allocation", caption, partial(figures.allocation, scores))
    texts: dict[object, list[EvaluationDocument]] = {}
    for x in results.evaluations:
        if x.text is not None:
            texts.setdefault((x.text.sha256, x.text.window), []).append(x)
    for same in texts.values():
        if any(x.pruning is not None for x in same):
            caption = "Perplexity against sparsity, by allocation"
            yield Panel("comparison", caption, partial(figures.comparison, same))
    for bench in results.benches:
        for (model, pruner), (curves, facts) in bench_curves(bench).items():
            lines = [Curve(name, points, pruner) for name, points in curves.items()]
            heading = f"{model}, pruned by {pruner}"
            found = Curves(heading, "× dense perplexity", lines, 1.0, facts)
            yield Panel("comparison", heading, partial(figures.comparison, found))
