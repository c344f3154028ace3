"""Pages that hold everything they need, for eyes and screen readers: a report, an explanation."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.explanation.explain import Explanation
from refimpl.explanation.shown_values import Figure, Step
from refimpl.report import figure as fig
from refimpl.report import pictures
from refimpl.report.figure import ReportFigure, picture, picture_styles
from refimpl.report.inputs import (
    EvaluationInput,
    PruningInput,
    ReportInput,
    ScoresInput,
    named,
    of_kind,
    read_inputs,
)
from refimpl.report.pictures import perturbation_words
from refimpl.report.runs import run_rows, runs_table
from refimpl.show.blocks import headline
from refimpl.show.explain import functions_said, numbers, shape
from refimpl.show.header import counted, joined, model_facts, token_facts
from refimpl.show.table import Table, number
from refimpl.storage.files import whole
from refimpl.version import __version__

# Fields of a file, and starts of names in them, that are no facts of how it was made.
PARTS = ("blocks", "sweep", "format")
NO_FACTS = ("windows", "questions", "linear_pruned", "perplexity", "nats", "bits", "acc", "stderr")
# The page loads nothing and runs nothing, and a browser holds it to that.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, title, pictures, and HTML after them."""

    ident: str
    title: str
    figures: Sequence[ReportFigure] = ()
    html: str = ""


def report(paths: Sequence[Path]) -> str:
    """Make one self-contained HTML page of files of scores, prunings and evaluations."""
    return page(read_inputs(paths))


def page(inputs: Sequence[ReportInput]) -> str:
    """The page about some files."""
    kind, parts = "Perturbation, absorption, sparsity", [*sections(inputs), *provenance(inputs)]
    lead = map(_lead, of_kind(ScoresInput, inputs)[:1])
    return document(inputs[0].model, kind, "".join(lead), parts)


def document(title: str, kind: str, lead: str, parts: Sequence[Section]) -> str:
    """A self-contained page: heading, HTML that leads to its parts, contents, and the parts."""
    head = files("refimpl.report")
    links = "\n".join(f'<li><a href="#{x.ident}">{escape(x.title)}</a></li>' for x in parts)
    body = "\n".join(
        f'<section id="{x.ident}">\n<h2>{escape(x.title)}</h2>\n'
        f"{grid_html(map(figure_html, x.figures))}{x.html}\n</section>"
        for x in parts
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(title)}: {kind.lower()}</title>
<style id="pictures">
{head.joinpath("pictures.css").read_text("utf-8")}</style>
<style>
{head.joinpath("page.css").read_text("utf-8")}</style>
</head>
<body>
<header>
<p class="kind">{kind}</p>
<h1>{escape(title)}</h1>
{lead}
<nav aria-label="Contents"><ul>
{links}
</ul></nav>
</header>
<main>
{body}
</main>
<footer><p>Made by refimpl {__version__}. This page loads nothing from elsewhere.</p></footer>
</body>
</html>"""
    # Names of files may hold bytes that are not UTF-8.
    return joined(page.split("\n")).encode("utf-8", "backslashreplace").decode("utf-8")


def _lead(scored: ScoresInput) -> str:
    """The main facts and findings, in large type."""
    scores, document = scored.scores, scored.file.document
    weights = int(scores.linear_sizes.sum())
    pruned = int(scored.allocations[0].linear_pruned.sum())
    tiles = {
        "blocks": str(scores.num_blocks),
        "prunable weights": f"{weights:,}",
        "to prune": f"{pruned / weights:.2%}",
        "base": str(document["base"]),
        "correction": str(document["correct"] or "none"),
        "tokens": f"{scores.tokens.samples} x {scores.tokens.seq_len}",
    }
    first = scored.allocations[0]
    said = headline(scores, scores.made_for, first.errors, first.clipped_share)
    return f"{lead_html(' '.join(said))}\n{facts_html(tiles, 'tiles')}"


def sections(inputs: Sequence[ReportInput]) -> Iterator[Section]:
    """Every section with pictures."""
    every = named(of_kind(ScoresInput, inputs))
    for i, scored in enumerate(every):
        yield from _scored(f"s{i}", scored, f": {scored.name}" * (len(every) > 1))
    if pruned := named(of_kind(PruningInput, inputs)):
        figures = [pictures.pruned_figure(f"p{i}", x) for i, x in enumerate(pruned)]
        yield _section("pruned", "Pruned models", pruned[0], figures)
    evaluated = of_kind(EvaluationInput, inputs)
    if figures := [*pictures.quality_figures(evaluated)]:
        yield _section("results", "Evaluations", evaluated[0], figures)


def _scored(key: str, scored: ScoresInput, whose: str) -> Iterator[Section]:
    """Pictures of the experiment and the allocation at each eta, and of all eta of a file."""
    sweep = scored.scores.sweep
    for j, absorption in enumerate(sweep):
        ident, at = f"{key}-{j}", perturbation_words(absorption)
        figures = [
            *(pictures.cost_figures(ident, scored) if j == 0 else ()),
            pictures.drift_figure(f"{ident}-drift", absorption),
            pictures.absorption_figure(f"{ident}-r", scored.scores, absorption),
            pictures.allocation_figure(f"{ident}-allocation", scored, j),
        ]
        yield _section(ident, f"Absorption with {at}{whose}", scored, figures, eta=at)
    if len(sweep) > 1:
        figures = [pictures.sweep_figure(f"{key}-eta", scored.scores)]
        yield _section(f"{key}-sweep", f"The sweep over eta{whose}", scored, figures)


def _section(
    ident: str, title: str, source: ReportInput, figures: Sequence[ReportFigure], eta: str = ""
) -> Section:
    """A section whose pictures say how the numbers of a file were made, if they are saved."""
    run, said = source.file.document["run"], [source.model, *filter(None, [eta])]
    if isinstance(source, EvaluationInput) and "perplexity" in source.sources:
        said.append(source.sources["perplexity"][0])
    if isinstance(source, ScoresInput):
        tokens, plan = source.scores.tokens, source.scores.plan
        said += [f"seed {plan.seed}", f"{tokens.samples} x {tokens.seq_len} tokens", tokens.source]
    said += [str(run["dtype"]), *(f"{name} {version}" for name, version in run["versions"].items())]
    figures = [replace(figure, settings=", ".join(said)) for figure in figures]
    return Section(ident, title, figures)


def provenance(inputs: Sequence[ReportInput]) -> Iterator[Section]:
    """All runs in one table; and parameters, run and versions of every file, in parts to open."""
    if any(not isinstance(x, ScoresInput) for x in inputs):
        yield Section("runs", "All runs", html=table_html(runs_table(run_rows(inputs))))
    first = {x.file.path: x.file for x in reversed(inputs)}
    cards = [
        f'<article class="card"><h3>{escape(x.name)}</h3>\n'
        f"<p>{escape(x.file.path.name)}</p>\n"
        "<details><summary>Parameters, run and versions</summary>\n"
        f"{facts_html(_facts(x.file.document, x.file.sha256))}\n</details>\n</article>"
        for kind in (ScoresInput, PruningInput, EvaluationInput)
        for x in named(of_kind(kind, inputs))
        if first[x.file.path] is x.file
    ]
    yield Section("provenance", "How these numbers were made", html=grid_html(cards))


def _facts(document: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """All fields of a file that are not measurements, by name and without nesting."""
    facts: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and key not in ("linears", "base_options"):
            for name, inner in value.items():
                if not name.startswith(NO_FACTS):
                    facts[f"{key} {name}".replace("_", " ")] = inner
        elif key not in PARTS:
            facts[key.replace("_", " ")] = value
    return facts | {"sha256 of the file": digest}


def figure_html(figure: ReportFigure) -> str:
    """A card: title, how to read it, the picture, and its numbers in a part to open."""
    return (
        f'<figure class="card" id="{figure.ident}">\n'
        f"<figcaption><h3>{escape(figure.title)}</h3>\n<p>{escape(figure.note)}</p></figcaption>\n"
        f"{picture(figure)}\n<details><summary>The numbers</summary>\n{table_html(figure.table)}\n"
        "</details>\n</figure>"
    )


def table_html(table: Table) -> str:
    """A table that scrolls sideways; its headings and the names of its rows stay in view."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(text)}</td>" for text in rest)
        + "</tr>"
        for first, *rest in table.rows
    )
    caption = escape(table.caption)
    return (
        f'<div class="scroll" role="group" tabindex="0" aria-label="{caption}">\n'
        f"<table>\n<caption>{caption}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>"
    )


def grid_html(cards: Iterable[str]) -> str:
    """Cards side by side, as many as fit; nothing if there is none."""
    inner = "\n".join(cards)
    return f'<div class="grid">\n{inner}\n</div>\n' if inner else ""


def lead_html(text: str) -> str:
    """A text in large type."""
    return f'<p class="lead">{escape(text)}</p>'


def facts_html(facts: Mapping[str, Any], css: str = "") -> str:
    """A list of names and values, without those that are None; lists and objects as JSON."""
    texts = {name: x if isinstance(x, str) else json.dumps(x) for name, x in facts.items()}
    rows = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in texts.items()
        if text != "null"
    )
    return f'<dl class="{css}">\n{rows}\n</dl>'


def write_figures(folder: Path, sections: Iterable[Section]) -> int:
    """Write every picture and its numbers to a new folder; the number of its files."""
    if folder.exists():
        raise RefimplError(
            f"--figures {folder} exists", "the path of a new folder", "choose another name"
        )
    contents, styles = {}, picture_styles()
    for figure in (figure for section in sections for figure in section.figures):
        contents[f"{figure.file_name}.svg"] = picture(figure, styles) + "\n"
        contents[f"{figure.file_name}.csv"] = figure.table.csv()
    with whole(folder) as beside:
        beside.mkdir()
        for name, content in contents.items():
            (beside / name).write_text(content, "utf-8", "backslashreplace")  # as the page
    return len(contents)


DRAWN, HEIGHT = 64, 90  # numbers of a small picture, and its height


def handout(found: Explanation) -> str:
    """The page of an explanation, whose links lead from the repository's root to the tutorial."""
    model = ", ".join(model_facts(found.model, found.family, found.num_blocks))
    tokens = ", ".join(token_facts(found.tokens))
    lead = f"{model}. Tokens: {tokens}. Shown: block {found.block}, the first sequence."
    parts = [
        Section(step.name, f"{n} {step.name}", html=_step(step, figures))
        for n, step, figures in found.steps
    ]
    return document(found.model, "The algorithm, step by step", lead_html(lead), parts)


def _step(step: Step, figures: tuple[Figure, ...]) -> str:
    """What computes a step, its pictures, its numbers, and a link to the reasons."""
    said = escape("\n".join(functions_said(step)))
    columns = {
        "name": [figure.name for figure in figures],
        "shape": [shape(figure) for figure in figures],
        "numbers": [numbers(figure) for figure in figures],
        "note": [figure.note for figure in figures],
    }
    drawn = (figure_html(x) for x in _pictures(step, figures))
    table = table_html(Table(columns, caption=f"Numbers of the step {step.name}"))
    why = f'<p>Why: <a href="{step.why}">{step.why}</a></p>'
    return f"<p>{escape(step.title)}</p>\n<pre>{said}</pre>\n{grid_html(drawn)}{table}\n{why}"


def _pictures(step: Step, figures: tuple[Figure, ...]) -> Iterator[fig.ReportFigure]:
    """The vectors of a step over their indices, but for constant ones."""
    for i, figure in enumerate(figures):
        values = np.atleast_1d(np.squeeze(figure.value))
        if values.dtype.kind != "f" or values.ndim > 1 or len(values) > DRAWN:
            continue
        texts = [number(x) for x in values]
        if len({*texts}) < 2:
            continue
        columns = {"index": [str(k) for k in range(len(values))], figure.name: texts}
        yield fig.ReportFigure(
            f"{step.name}-{i}",
            figure.name,
            figure.note,
            (figure.name, f"{counted(len(values), 'number')}, from {texts[0]} to {texts[-1]}."),
            Table(columns, caption=figure.name),
            fig.blocks_axis("index", len(values)),
            fig.spanning(figure.name, values, None),
            [fig.Line("", [*enumerate(values.tolist())])],
            height=HEIGHT,
        )
