"""A self-contained page of figures and tables, for light and dark screens."""

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from io import StringIO
from math import inf, nan
from pathlib import Path
from string import Template

from refimpl.allocation.allocate import allocate, requested
from refimpl.allocation.scores import Scores
from refimpl.bench.cells import Comparison
from refimpl.bench.tables import LEGEND, bench_table
from refimpl.errors import printable
from refimpl.evaluation.evaluate import EvaluationDocument
from refimpl.plot.inputs import Drawable, Panel, panels, read_result
from refimpl.plot.style import FAINT, INK, METADATA, drawn, styled
from refimpl.show.blocks import columns
from refimpl.show.header import header, wrapped
from refimpl.show.table import Table, measured
from refimpl.version import __version__


def report(paths: Sequence[str | Path]) -> str:
    """One HTML page about files of scores, evaluations and comparisons.

    Args:
        paths: Scores, evaluations and comparisons of refimpl, or folders that hold them.

    Returns:
        The page. The same files give the same page.

    Raises:
        RefimplError: A file that refimpl did not write; files that have nothing to draw.
    """
    results = [read_result(Path(path)) for path in paths]
    sections = enumerate(_sections(results))
    body = "\n".join(_section(f"s{i}", *section) for i, section in sections)
    first = results[0].rows[0].model if isinstance(results[0], Comparison) else results[0].model
    template = Template(files("refimpl.plot").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=html(f"{first}: results"), version=html(__version__), body=body
    )


def html(text: object) -> str:
    """A foreign text in HTML, as text and as the value of an attribute."""
    return escape(printable(text)).encode("utf-8", "backslashreplace").decode("utf-8")


def _sections(results: Sequence[Drawable]) -> Iterator[tuple[str, list[Panel], str]]:
    """Of each section its heading, its figures, and HTML below them."""
    for scores in (x for x in results if isinstance(x, Scores)):
        whose = f"{scores.model}, {scores.tokens.source.partition(', ')[0]}"
        yield whose, panels([scores]), _numbers(scores)
    if evaluations := [x for x in results if isinstance(x, EvaluationDocument)]:
        shown = panels(evaluations) if any(x.pruning for x in evaluations) else []
        yield "Evaluations", shown, table_html(_evaluations(evaluations))
    for bench in (x for x in results if isinstance(x, Comparison)):
        figures, table = panels([bench]), table_html(bench_table(bench))
        yield "Comparison", figures, f"{table}\n<p>{html(LEGEND)}</p>"


def _evaluations(evaluations: Sequence[EvaluationDocument]) -> Table:
    """A row per evaluation."""
    rows = list[tuple[str, str, str]]()
    for x in evaluations:
        name = f"{x.model}, {x.pruning.name}" if x.pruning else x.model
        source = x.text.source.partition(", ")[0]
        windows = f"{source}, {x.text.num_windows} x {x.text.window}"
        error = x.text.perplexity_stderr
        value = inf if x.text.perplexity is None else x.text.perplexity
        rows.append((name, windows, measured(value, nan if error is None else error)))
    columns = zip(("run", "text", "perplexity"), zip(*rows, strict=True), strict=True)
    return Table(dict(columns), left=2)


def _numbers(scores: Scores) -> str:
    """A table of the blocks, and how the numbers were made; closed."""
    if scores.made_for.get("base") is None:
        return ""
    made = (allocate(scores, requested(scores)),)
    facts = "\n".join(map(html, wrapped(header(scores, made))))
    table = table_html(Table(columns(scores, made), left=1))
    return f"<details><summary>The numbers</summary>\n{table}\n<pre>{facts}</pre></details>"


def _section(ident: str, heading: str, figures: Iterable[Panel], below: str) -> str:
    """A section: its heading, figures side by side where they fit, and tables."""
    shown = [f"<figure>\n{picture(x, f'{ident}-{i}-')}\n</figure>" for i, x in enumerate(figures)]
    grid = "\n".join(['<div class="grid">', *shown, "</div>"]) if shown else ""
    return f"<section>\n<h2>{html(heading)}</h2>\n{grid}\n{below}\n</section>"


def picture(panel: Panel, prefix: str) -> str:
    """The SVG of a figure in a page: with its own ids, and with the page's colours of texts."""
    figure, text = drawn([panel[1]]), StringIO()
    with styled():
        figure.savefig(text, format="svg", transparent=True, dpi=200, metadata=METADATA[".svg"])
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
