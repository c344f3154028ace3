"""A self-contained page of figures and tables, for light and dark screens."""

import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from io import StringIO
from pathlib import Path
from string import Template

from refimpl.allocation.allocate import allocate, requested
from refimpl.allocation.scores import Scores
from refimpl.bench.tables import bench_table, notes
from refimpl.errors import printable
from refimpl.plot.inputs import Panel, Results, panels, read_results
from refimpl.plot.runs import run_rows, runs_table
from refimpl.plot.style import FAINT, INK, METADATA, drawn, styled
from refimpl.show.blocks import columns
from refimpl.show.header import header, wrapped
from refimpl.show.table import Table
from refimpl.version import __version__


def report(paths: Sequence[str | Path]) -> str:
    """One HTML page about files of scores, prunings, evaluations and comparisons.

    Args:
        paths: Files that refimpl wrote, in any order, or the folders that hold them.

    Returns:
        The page. The same files give the same page.

    Raises:
        RefimplError: A file that refimpl did not write; files that have nothing to draw.
    """
    results = read_results([*map(Path, paths)])
    if not (results.scores or results.evaluations or results.benches):
        panels(results)  # which says what is missing
    sections = enumerate(_sections(results))
    body = "\n".join(_section(f"s{i}", *section) for i, section in sections)
    names = [x.model for x in results.scores] + [x.model for x in results.evaluations]
    names += [x.rows[0].model for x in results.benches]
    template = Template(files("refimpl.plot").joinpath("page.html").read_text("utf-8"))
    return template.substitute(
        title=html(f"{names[0]}: results"), version=html(__version__), body=body
    )


def html(text: object) -> str:
    """A foreign text in HTML, as text and as the value of an attribute."""
    return escape(printable(text)).encode("utf-8", "backslashreplace").decode("utf-8")


def _sections(results: Results) -> Iterator[tuple[str, list[Panel], str]]:
    """Of each section its heading, its figures, and HTML below them."""
    for scores in results.scores:
        whose = f"{scores.model}, {scores.tokens.source.partition(', ')[0]}"
        yield whose, panels(Results([scores], (), ())), _numbers(scores)
    others = Results((), results.evaluations, ())
    if results.evaluations:
        shown = panels(others) if any(x.pruning for x in results.evaluations) else []
        yield "All runs", shown, table_html(runs_table(run_rows(results.evaluations)))
    for bench in results.benches:
        said = "".join(f"<li>{html(note)}</li>" for note in notes(bench))
        below = f"{table_html(bench_table(bench))}\n<ul>{said}</ul>"
        yield "Comparison", panels(Results((), (), [bench])), below


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
    figure, text = drawn([panel.draw]), StringIO()
    with styled():
        figure.savefig(text, format="svg", transparent=True, dpi=200, metadata=METADATA[".svg"])
    svg = text.getvalue()
    size = re.findall('viewBox="[^"]*"', svg)[0]
    inner = svg[svg.index(">", svg.index("<svg")) + 1 :].strip()
    inner = re.sub(r"<!--.*?-->|<style.*?</style>", "", inner, flags=re.DOTALL)
    inner = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}", inner)
    inner = inner.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)")
    return f'<svg role="img" aria-label="{html(panel.caption)}" {size}>\n{inner}'


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
