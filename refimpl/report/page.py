"""The report: one page that holds everything it needs, for eyes and for screen readers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from refimpl.model.config import kind_of
from refimpl.report import allocation, experiment, results
from refimpl.report.costs import cost_figures
from refimpl.report.experiment import lines_figure, perturbation_words
from refimpl.report.figure import ReportFigure, Section
from refimpl.report.html import facts_html, figure_html, grid_html, table_html
from refimpl.report.inputs import (
    EvaluationInput,
    ReportInput,
    ReportInputs,
    ScoresInput,
    read_inputs,
)
from refimpl.running.memory import MIB
from refimpl.show.findings import headline
from refimpl.show.header import counted, joined
from refimpl.version import __version__

# Fields of a file, and starts of names in them, that are no facts of how it was made.
PARTS = ("blocks", "sweep", "linears", "format")
NO_FACTS = ("windows", "questions", "linear_pruned", "perplexity", "nats", "bits", "acc", "stderr")
LOOSE = "grid loose"  # class of cards of different heights
Figures = Sequence[ReportFigure]
# The page loads nothing, and a browser holds it to that.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def report(paths: Sequence[Path]) -> str:
    """Make one self-contained HTML page of files of scores, prunings and evaluations."""
    return page(read_inputs(paths).named)


def page(inputs: ReportInputs) -> str:
    """The page about some files."""
    head = files("refimpl.report")
    first = inputs.all[0].model
    parts = [*sections(inputs), provenance(inputs)]
    links = "\n".join(f'<li><a href="#{x.ident}">{escape(x.title)}</a></li>' for x in parts)
    body = "\n".join(
        f'<section id="{x.ident}">\n<h2>{escape(x.title)}</h2>\n'
        f"{grid_html(map(figure_html, x.figures), x.css)}{x.html}\n</section>"
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
<title>{escape(first)}: absorption and sparsity</title>
<style id="pictures">
{head.joinpath("pictures.css").read_text("utf-8")}</style>
<style>
{head.joinpath("page.css").read_text("utf-8")}</style>
</head>
<body>
<header>
<p class="kind">Perturbation, absorption, sparsity</p>
<h1>{escape(first)}</h1>
{"".join(map(_lead, inputs.scored[:1]))}
<nav aria-label="Contents"><ul>
{links}
</ul></nav>
</header>
<main>
{body}
</main>
<footer><p>Made by refimpl {__version__} from {counted(len(inputs.files), "file")}.
This page loads nothing from elsewhere.</p></footer>
<script>
{head.joinpath("page.js").read_text("utf-8")}</script>
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
    lead = f'<p class="lead">{escape(" ".join(said))}</p>'
    return f"{lead}\n{facts_html(tiles, 'tiles')}"


def sections(inputs: ReportInputs) -> Iterator[Section]:
    """Every section with pictures."""
    for i, scored in enumerate(inputs.scored):
        yield from _scored(f"s{i}", scored, f": {scored.name}" * (len(inputs.scored) > 1))
    if len(inputs.scored) > 1:
        lines = {
            f"{x.name}, {perturbation_words(x.scores.sweep[0])}": x.scores.sweep[0].coefficient
            for x in inputs.scored
        }
        title = "Absorption coefficients side by side"
        note = "Of each file of scores, at its first eta."
        figure = lines_figure("compared-r", title, note, lines)
        yield _section("compared", "Scores side by side", inputs.scored[0], [figure])
    if pruned := inputs.pruned:
        table = table_html(results.prunings_table(pruned), "prunings")
        figures = [allocation.pruned_figure(f"p{i}", x) for i, x in enumerate(pruned)]
        if len(pruned) > 1:
            sums = [{key: n.sum(axis=1) for key, n in x.counts.items()} for x in pruned]
            lines = {x.name: n["pruned"] / n["weights"] for x, n in zip(pruned, sums, strict=True)}
            note = "The fraction pruned of every block"
            note += "; the line is the requested total of the first."
            target = float(sums[0]["requested"].sum() / sums[0]["weights"].sum())
            title = "Prunings side by side"
            figures.append(lines_figure("prunings-blocks", title, note, lines, target))
        yield _section("pruned", "Pruned models", pruned[0], figures, table)
    if evaluated := inputs.evaluated:
        table = table_html(results.results_table(evaluated), "results")
        figures = [*results.quality_figures(evaluated)]
        figures += results.results_figures("results", evaluated)
        yield _section("results", "Evaluations", evaluated[0], figures, table)


def _scored(key: str, scored: ScoresInput, whose: str) -> Iterator[Section]:
    """Pictures of the experiment and the allocation at each eta, and of all eta of a file."""
    sweep, names = scored.scores.sweep, [perturbation_words(x) for x in scored.scores.sweep]
    for j, absorption in enumerate(sweep):
        ident = f"{key}-{j}"
        figures = [
            *(cost_figures(ident, scored) if j == 0 else ()),
            experiment.drift_figure(f"{ident}-drift", absorption),
            experiment.drift_map(f"{ident}-map", absorption),
            experiment.alignment_map(f"{ident}-angle", absorption),
            experiment.absorption_figure(f"{ident}-r", scored.scores, absorption),
            allocation.allocation_figure(f"{ident}-allocation", scored, j),
            allocation.requested_figure(f"{ident}-linears", scored, j),
        ]
        title = f"Absorption with {names[j]}{whose}"
        yield _section(ident, title, scored, figures, eta=names[j])
    if len(sweep) > 1:
        r = {name: x.coefficient for name, x in zip(names, sweep, strict=True)}
        title, note = "Absorption coefficients at each eta", "The same numbers over the blocks."
        figures = [experiment.sweep_figure(f"{key}-eta", scored.scores)]
        figures.append(lines_figure(f"{key}-etas", title, note, r))
        allocated = zip(names, scored.allocations, strict=True)
        fractions = {name: x.corrected_sparsity for name, x in allocated}
        title = "Corrected allocation at each eta"
        note = "The base, corrected by the coefficients at each eta."
        target = float(scored.file.document["requested_sparsity"])
        figures.append(lines_figure(f"{key}-sparsities", title, note, fractions, target))
        yield _section(f"{key}-sweep", f"The sweep over eta{whose}", scored, figures)


def _section(
    ident: str, title: str, source: ReportInput, figures: Figures, html: str = "", eta: str = ""
) -> Section:
    """A section whose pictures say how the numbers of a file were made, if they are saved."""
    run, said = source.file.document["run"], [source.model, *filter(None, [eta])]
    if isinstance(source, EvaluationInput) and source.text is not None:
        said.append(source.text[0])
    if isinstance(source, ScoresInput):
        tokens, plan = source.scores.tokens, source.scores.plan
        said += [f"seed {plan.seed}", f"{tokens.samples} x {tokens.seq_len} tokens", tokens.source]
    said += [str(run["dtype"]), *(f"{name} {version}" for name, version in run["versions"].items())]
    figures = [replace(figure, settings=", ".join(said)) for figure in figures]
    css = LOOSE if isinstance(source, EvaluationInput) else "grid"
    return Section(ident, title, figures, html, css)


def provenance(inputs: ReportInputs) -> Section:
    """Parameters, run and versions of every file, in parts to open."""
    cards = [
        f'<article class="card"><h3>{escape(x.name)}</h3>\n'
        f"<p>{x.kind}, {escape(x.file.path.name)}</p>\n"
        "<details><summary>Parameters, run and versions</summary>\n"
        f"{facts_html(_facts(x.file.document, x.file.sha256))}\n</details>\n</article>"
        for x in inputs.files
    ]
    return Section("provenance", "How these numbers were made", html=grid_html(cards, LOOSE))


def _facts(document: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """All fields of a file that are not measurements, by name and without nesting."""
    facts: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and key not in ("linears", "base_options"):
            for name, inner in value.items():
                if isinstance(inner, int | float) and ("memory" in name or name == "seconds"):
                    inner = f"{inner:.4g} s" if name == "seconds" else f"{inner / MIB:,.6g} MiB"
                if not name.startswith(NO_FACTS):
                    facts[f"{key} {name}".replace("_", " ")] = inner
        elif key not in PARTS:
            facts[key.replace("_", " ")] = value
    if "linears" in document:
        shapes = {kind_of(name): shape for name, shape in document["linears"].items()}
        facts["linears"] = ", ".join(f"{name} {n} x {m}" for name, (n, m) in shapes.items())
    return facts | {"sha256 of the file": digest}
