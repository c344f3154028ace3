"""Files of results of each kind; their figures, and a self-contained page of figures and tables."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from io import StringIO
from math import inf, nan
from pathlib import Path
from string import Template
from typing import Any

from refimpl.allocation.allocate import allocate, request_for
from refimpl.allocation.scores import Scores
from refimpl.allocation.scores_json import read_scores
from refimpl.bench.cells import BENCH, Comparison, read_bench
from refimpl.bench.tables import LEGEND, bench_table
from refimpl.errors import RefimplError, printable
from refimpl.evaluation.evaluate import EvaluationDocument
from refimpl.loading.files.documents import (
    converted,
    parsed_object,
    read_file,
    reading_document,
)
from refimpl.plot import figures
from refimpl.plot.style import FAINT, FILE_METADATA, INK, drawn, styled
from refimpl.show.blocks import columns, header
from refimpl.show.table import Table, with_error, wrapped
from refimpl.version import __version__

_ERROR_TEXT = (
    "a whole file of refimpl",
    "scores.json, what refimpl eval -o wrote, or a folder of refimpl bench",
    "run that command again",
)
_LARGEST = 1e100  # of numbers that a figure has room for
Drawable = Scores | EvaluationDocument | Comparison
Panel = tuple[str, Callable[..., Any]]  # the name of a figure, and what draws it


def read_result(path: Path) -> Drawable:
    """Read a file of any kind; a folder stands for the comparison or the scores in it."""
    if path.name == BENCH or (path / BENCH).is_file():
        bench = read_bench(path / BENCH if path.is_dir() else path)
        if all(row.pruner is None for row in bench.rows):
            problem = f"{path}: no pruned model was measured yet"
            raise RefimplError(
                problem, "a comparison with cells", "run refimpl bench again"
            )
        return bench
    if path.is_dir() and not (path / "scores.json").is_file():
        raise RefimplError(f"{path}: no {BENCH} and no scores.json", *_ERROR_TEXT[1:])
    path = path / "scores.json" if path.is_dir() else path
    with reading_document(path, _ERROR_TEXT):
        document = parsed_object(read_file(path), None, _LARGEST)
        if {"family", "run", "text"} <= document.keys():
            return converted(document, EvaluationDocument)
        if "scores" not in document:
            raise ValueError("no scores, evaluation or comparison")
    return read_scores(path)


def panels(results: Sequence[Drawable], wanted: str | None = None) -> list[Panel]:
    """All figures of some results, or those of one name."""
    drawable = [x for x in _panels(results) if wanted in (None, x[0])]
    if not drawable:
        raise RefimplError(
            f"the files have {'nothing to draw' if wanted is None else f'no {wanted}'}",
            "scores; evaluations of a pruned model; or a comparison of refimpl bench",
            "add such a file, or evaluate a pruned model with refimpl eval -o",
        )
    return drawable


def _panels(results: Sequence[Drawable]) -> Iterator[Panel]:
    """The figures of scores and comparisons, and one of the evaluations on each text."""
    texts: dict[object, list[EvaluationDocument]] = {}
    for result in results:
        if isinstance(result, Scores):
            for i in range(len(result.sweep)):
                yield "drift", partial(figures.drift, result, which=i)
            yield "coefficients", partial(figures.coefficients, result)
            if result.sweep[0].divergence is not None:
                yield "divergence", partial(figures.divergence, result)
            if result.made_for.get("base") is not None:  # it is no file
                yield "allocation", partial(figures.allocation, result)
        elif isinstance(result, EvaluationDocument):
            texts.setdefault((result.text.sha256, result.text.window), []).append(
                result
            )
        elif any(row.pruner for row in result.rows):
            yield "comparison", partial(figures.comparison, result)
    for same in texts.values():
        if any(x.pruning is not None for x in same):
            yield "comparison", partial(figures.comparison, same)


def report(paths: Sequence[str | Path]) -> str:
    """One HTML page about files of scores, evaluations and comparisons; the same for the same."""
    results = [read_result(Path(path)) for path in paths]
    body = list[str]()
    for i, (heading, drawings, below) in enumerate(_sections(results)):
        pictures = (picture(x, f"s{i}-{j}-") for j, x in enumerate(drawings))
        shown = [f"<figure>\n{x}\n</figure>" for x in pictures]
        grid = "\n".join(['<div class="grid">', *shown, "</div>"]) if shown else ""
        body.append(f"<section>\n<h2>{html(heading)}</h2>\n{grid}\n{below}\n</section>")
    first = (
        results[0].rows[0].model
        if isinstance(results[0], Comparison)
        else results[0].model
    )
    template = Template(files("refimpl.plot").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=html(f"{first}: results"), version=html(__version__), body="\n".join(body)
    )


def html(text: object) -> str:
    """A foreign text in HTML, as text and as the value of an attribute."""
    return escape(printable(text)).encode("utf-8", "backslashreplace").decode("utf-8")


def _sections(results: Sequence[Drawable]) -> Iterator[tuple[str, list[Panel], str]]:
    """Of each section its heading, its figures, and HTML below them."""
    for scores in (x for x in results if isinstance(x, Scores)):
        whose, numbers = (
            f"{scores.model}, {scores.tokens.source.partition(', ')[0]}",
            "",
        )
        if scores.made_for.get("base") is not None:
            allocated = allocate(scores, request_for(scores))
            facts = "\n".join(map(html, wrapped(header(scores, allocated))))
            numbers = f"{table_html(Table(columns(scores, allocated), left=1))}\n<pre>{facts}</pre>"
            numbers = f"<details><summary>The numbers</summary>\n{numbers}</details>"
        yield whose, panels([scores]), numbers
    if evaluations := [x for x in results if isinstance(x, EvaluationDocument)]:
        shown = panels(evaluations) if any(x.pruning for x in evaluations) else []
        of_runs: dict[str, list[str]] = {"run": [], "text": [], "perplexity": []}
        for x in evaluations:
            text, size = x.text, f"{x.text.num_windows} x {x.text.window}"
            of_runs["run"].append(
                f"{x.model}, {x.pruning.name}" if x.pruning else x.model
            )
            of_runs["text"].append(f"{text.source.partition(', ')[0]}, {size}")
            value = inf if text.perplexity is None else text.perplexity
            error = nan if text.perplexity_stderr is None else text.perplexity_stderr
            of_runs["perplexity"].append(with_error(value, error))
        yield "Evaluations", shown, table_html(Table(of_runs, left=2))
    for one in (x for x in results if isinstance(x, Comparison)):
        yield (
            "Comparison",
            panels([one]),
            f"{table_html(bench_table(one))}\n<p>{html(LEGEND)}</p>",
        )


def picture(panel: Panel, prefix: str) -> str:
    """The SVG of a figure in a page: with its own ids, and with the page's colours of texts."""
    figure, text = drawn([panel[1]]), StringIO()
    with styled():
        more = {"dpi": 200, "metadata": FILE_METADATA[".svg"]}
        figure.savefig(text, format="svg", transparent=True, **more)
    size, inner = re.findall('(viewBox="[^"]*").*?>(.*)', text.getvalue(), re.DOTALL)[0]
    inner = re.sub(r"<!--.*?-->|<style.*?</style>", "", inner.strip(), flags=re.DOTALL)
    inner = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", inner)
    inner = inner.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    label = html(figure.axes[0].get_title(loc="left").replace("\n", " "))
    return f'<svg role="img" aria-label="{label}" {size}>\n{inner}'


def table_html(table: Table) -> str:
    """A table that scrolls; its headings stay in view."""
    head = "".join(f'<th scope="col">{html(name)}</th>' for name in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{html(first)}</th>{"".join(f"<td>{html(x)}</td>" for x in rest)}</tr>'
        for first, *rest in table.rows
    )
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="Table">\n<table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )
