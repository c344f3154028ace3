"""The report: one page that holds everything it needs, for eyes and for screen readers."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.report.absorption import findings
from refimpl.report.drift import perturbation_words
from refimpl.report.html import facts_html
from refimpl.report.inputs import ReportInputs, ScoresInput, read_inputs
from refimpl.report.sections import sections
from refimpl.show.header import counted
from refimpl.version import __version__

LIMIT = 1_000_000  # bytes of a page
# The page loads nothing, and a browser holds it to that.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def report(paths: Sequence[Path]) -> str:
    """Make one self-contained HTML page of files of scores, prunings and evaluations."""
    inputs = read_inputs(paths)
    most = max(len(one.scores.sweep) for one in inputs.scored)
    for etas in range(most, 0, -1):  # corrections are computed from the first eta
        # Names of files may hold bytes that are not UTF-8.
        page = _page(inputs, etas).encode("utf-8", "backslashreplace").decode("utf-8")
        if len(page.encode()) < LIMIT:
            return page
    raise RefimplError(
        f"the page would have {len(page.encode()):,} bytes",
        f"less than {LIMIT:,} bytes",
        "make one page per file",
    )


def _page(inputs: ReportInputs, etas: int) -> str:
    """The page, with the pictures of that many etas of each file."""
    head = files("refimpl.report")
    first = inputs.scored[0].scores.model
    count = len(inputs.scored) + len(inputs.pruned) + len(inputs.evaluated)
    parts = list(sections(inputs, etas))
    links = "\n".join(f'<li><a href="#{key}">{escape(title)}</a></li>' for key, title, _ in parts)
    body = "\n".join(
        f'<section id="{key}">\n<h2>{escape(title)}</h2>\n{html}\n</section>'
        for key, title, html in parts
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(first)}: absorption and sparsity</title>
<style>
{head.joinpath("page.css").read_text("utf-8")}</style>
</head>
<body>
<header>
<p class="kind">Perturbation, absorption, sparsity</p>
<h1>{escape(first)}</h1>
{_lead(inputs.scored[0])}
<nav aria-label="Contents"><ul>
{links}
</ul></nav>
</header>
<main>
{body}
</main>
<footer><p>Made by refimpl {__version__} from {counted(count, "file")}.
This page loads nothing from elsewhere.</p></footer>
<script>
{head.joinpath("page.js").read_text("utf-8")}</script>
</body>
</html>
"""


def _lead(scored: ScoresInput) -> str:
    """The main facts and findings, in large type."""
    scores, document = scored.scores, scored.file.document
    weights = int(scores.linear_sizes.sum()) * scores.num_blocks
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
    lead = f'<p class="lead">With {escape(perturbation_words(scores.sweep[0]))}, {escape(said)}</p>'
    return f"{lead}\n{facts_html(tiles, 'tiles')}"
