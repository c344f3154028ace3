"""The report: one page that holds everything it needs, for eyes and for screen readers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.model.config import kind_of
from refimpl.report.absorption import absorption_figure, sweep_figure
from refimpl.report.allocation import allocation_figure, pruned_figure, requested_figure
from refimpl.report.drift import alignment_map, drift_figure, drift_map, perturbation_words
from refimpl.report.html import ReportFigure, Section, facts_html, grid_html, table_html
from refimpl.report.inputs import (
    EvaluationInput,
    PruningInput,
    ReportInput,
    ReportInputs,
    ScoresInput,
    read_inputs,
)
from refimpl.report.lines import lines_figure
from refimpl.report.quality import quality_figures
from refimpl.report.results import prunings_table, results_figures, results_table
from refimpl.running.memory import MIB
from refimpl.show.findings import findings
from refimpl.show.header import counted, joined
from refimpl.version import __version__

# Fields of a file, and starts of names in them, that are no facts of how it was made.
PARTS = ("blocks", "sweep", "linears", "format")
NO_FACTS = ("windows", "questions", "linear_pruned", "perplexity", "nats", "bits", "acc", "stderr")
LIMIT = 1_000_000  # bytes of a page
# The page loads nothing, and a browser holds it to that.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def report(paths: Sequence[Path]) -> str:
    """Make one self-contained HTML page of files of scores, prunings and evaluations."""
    return page(read_inputs(paths).named)


def page(inputs: ReportInputs) -> str:
    """The page about some files: pictures of as many etas as fit."""
    most = max((len(one.scores.sweep) for one in inputs.scored), default=1)
    for etas in range(most, 0, -1):  # corrections are computed from the first eta
        # Names of files may hold bytes that are not UTF-8.
        text = _page(inputs, etas).encode("utf-8", "backslashreplace").decode("utf-8")
        if len(text.encode()) < LIMIT:
            return text
    raise RefimplError(
        f"the page would have {len(text.encode()):,} bytes",
        f"less than {LIMIT:,} bytes",
        "make one page per file",
    )


def _page(inputs: ReportInputs, etas: int) -> str:
    """The page, with the pictures of that many etas of each file."""
    head = files("refimpl.report")
    first = inputs.all[0].model
    parts = [*sections(inputs, etas), provenance(inputs)]
    links = "\n".join(f'<li><a href="#{x.ident}">{escape(x.title)}</a></li>' for x in parts)
    body = "\n".join(
        f'<section id="{x.ident}">\n<h2>{escape(x.title)}</h2>\n'
        f"{grid_html(x.figures, x.css) if x.figures else ''}{x.html}\n</section>"
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
    return joined(page.split("\n"))


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
    said = " ".join(findings(scores.sweep[0]))
    lead = f'<p class="lead">{escape(said)} With {escape(perturbation_words(scores.sweep[0]))}.</p>'
    return f"{lead}\n{facts_html(tiles, 'tiles')}"


def sections(inputs: ReportInputs, etas: int) -> Iterator[Section]:
    """Every section with pictures, those of so many etas of each file."""
    for i, scored in enumerate(inputs.scored):
        whose = f": {scored.name}" if len(inputs.scored) > 1 else ""
        sweep, how = scored.scores.sweep, partial(_with_settings, scored)
        for j, absorption in enumerate(sweep[:etas]):
            title = f"Absorption with {perturbation_words(absorption)}{whose}"
            yield Section(f"s{i}-{j}", title, how(_experiment(f"s{i}-{j}", scored, j), j))
        if len(sweep) > 1:
            left, html = len(sweep[etas:]), ""
            if left:
                also = counted(left, "other eta")
                html = f"<p>Pictures of {also} are omitted to keep the page under 1 MB.</p>"
            title = f"The sweep over eta{whose}"
            yield Section(f"s{i}-sweep", title, how(_sweep(f"s{i}", scored)), html)
    if len(inputs.scored) > 1:
        pictures = _with_settings(inputs.scored[0], [_compared(inputs.scored)])
        yield Section("compared", "Scores side by side", pictures)
    if inputs.pruned:
        table = table_html(prunings_table(inputs.pruned), "prunings")
        pictures = _with_settings(inputs.pruned[0], _prunings(inputs.pruned))
        yield Section("pruned", "Pruned models", pictures, table)
    if inputs.evaluated:
        table = table_html(results_table(inputs.evaluated), "results")
        pictures = _with_settings(
            inputs.evaluated[0],
            [*quality_figures(inputs.evaluated), *results_figures("results", inputs.evaluated)],
        )
        yield Section("results", "Evaluations", pictures, table, "grid loose")


def _with_settings(
    source: ReportInput, figures: Iterable[ReportFigure], eta: int | None = None
) -> list[ReportFigure]:
    """Pictures that say how the numbers of a file were made, if they are saved."""
    run = source.file.document["run"]
    facts = [source.model]
    if isinstance(source, EvaluationInput) and source.text is not None:
        facts.append(source.text[0])
    if isinstance(source, ScoresInput):
        tokens, plan = source.scores.tokens, source.scores.plan
        if eta is not None:
            facts.append(perturbation_words(source.scores.sweep[eta]))
        facts += [f"seed {plan.seed}", f"{tokens.samples} x {tokens.seq_len} tokens", tokens.source]
    versions = [f"{name} {version}" for name, version in run["versions"].items()]
    settings = ", ".join([*facts, str(run["dtype"]), *versions])
    return [replace(figure, settings=figure.settings or settings) for figure in figures]


def _experiment(key: str, scored: ScoresInput, which: int) -> Iterator[ReportFigure]:
    """Pictures of the experiment at one eta, and of the allocation made from it."""
    absorption = scored.scores.sweep[which]
    yield drift_figure(f"{key}-drift", absorption)
    yield drift_map(f"{key}-map", absorption)
    yield alignment_map(f"{key}-turn", absorption)
    yield absorption_figure(f"{key}-r", scored.scores, absorption)
    yield allocation_figure(f"{key}-allocation", scored, which)
    yield requested_figure(f"{key}-linears", scored, which)


def _sweep(key: str, scored: ScoresInput) -> Iterator[ReportFigure]:
    """Pictures of all eta of a file."""
    names = [perturbation_words(absorption) for absorption in scored.scores.sweep]
    coefficients = [absorption.coefficient for absorption in scored.scores.sweep]
    sparsities = [allocation.corrected_sparsity for allocation in scored.allocations]
    yield sweep_figure(f"{key}-eta", scored.scores)
    yield lines_figure(
        f"{key}-etas",
        "Absorption coefficients at each eta",
        "The same numbers over the blocks.",
        dict(zip(names, coefficients, strict=True)),
    )
    yield lines_figure(
        f"{key}-sparsities",
        "Corrected allocation at each eta",
        "The base, corrected by the coefficients at each eta.",
        dict(zip(names, sparsities, strict=True)),
        float(scored.file.document["requested_sparsity"]),
    )


def _prunings(pruned: Sequence[PruningInput]) -> Iterator[ReportFigure]:
    """Pictures of all prunings, and of several side by side."""
    for i, pruning in enumerate(pruned):
        yield pruned_figure(f"p{i}", pruning)
    if len(pruned) > 1:
        weights, requested = (pruned[0].counts[key].sum() for key in ("weights", "requested"))
        yield lines_figure(
            "prunings-blocks",
            "Prunings side by side",
            "The fraction pruned of every block; the line is the requested total of the first.",
            {
                x.name: x.counts["pruned"].sum(axis=1) / x.counts["weights"].sum(axis=1)
                for x in pruned
            },
            float(requested / weights),
        )


def _compared(scored: Sequence[ScoresInput]) -> ReportFigure:
    """Coefficients of several files, at the first eta of each."""
    first = {x.name: x.scores.sweep[0] for x in scored}
    return lines_figure(
        "compared-r",
        "Absorption coefficients side by side",
        "Of each file of scores, at its first eta.",
        {f"{name}, {perturbation_words(x)}": x.coefficient for name, x in first.items()},
    )


def provenance(inputs: ReportInputs) -> Section:
    """Parameters, run and versions of every file, in parts to open."""
    cards = []
    for x in inputs.files:
        facts = facts_html(_facts(x.file.document, x.file.sha256))
        cards.append(
            f'<article class="card"><h3>{escape(x.name)}</h3>\n'
            f"<p>{x.kind}, {escape(x.file.path.name)}</p>\n"
            f"<details><summary>Parameters, run and versions</summary>\n{facts}\n</details>"
            "\n</article>"
        )
    html = '<div class="grid loose">\n' + "\n".join(cards) + "\n</div>"
    return Section("provenance", "How these numbers were made", html=html)


def _facts(document: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """All fields of a file that are not measurements, by name and without nesting."""
    facts: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and key not in ("linears", "base_options"):
            for name, inner in value.items():
                if not name.startswith(NO_FACTS):
                    facts[f"{key} {name}".replace("_", " ")] = _with_unit(name, inner)
        elif key not in PARTS:
            facts[key.replace("_", " ")] = value
    if "linears" in document:
        shapes = {kind_of(name): shape for name, shape in document["linears"].items()}
        facts["linears"] = ", ".join(f"{name} {n} x {m}" for name, (n, m) in shapes.items())
    return facts | {"sha256 of the file": digest}


def _with_unit(name: str, value: Any) -> Any:
    """Bytes and seconds with their unit."""
    if isinstance(value, int | float) and "memory" in name:
        return f"{value / MIB:,.6g} MiB"
    return f"{value:.4g} s" if isinstance(value, int | float) and name == "seconds" else value
