"""The report: one page that holds everything it needs, for eyes, and for those without."""

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from refimpl.errors import RefimplError
from refimpl.report.absorption import (
    findings,
)
from refimpl.report.drift import push_words
from refimpl.report.files import read_files
from refimpl.report.inputs import Files, Scored
from refimpl.report.sections import sections
from refimpl.show.header import counted
from refimpl.version import __version__

LIMIT = 1_000_000  # bytes of a page
# Nothing is loaded from anywhere; a browser holds the page to it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def report(paths: Sequence[Path]) -> str:
    """One self-contained HTML page about scores, and about prunings and evaluations beside them.

    Args:
        paths: Files of `refimpl score`, `allocate`, `prune` and `eval`, scores among them.

    Returns:
        The page; the same files give the same page.

    Raises:
        RefimplError: A file that cannot be used; more than fits into a page of 1 MB.
    """
    given = read_files(paths)
    most = max(len(one.scores.sweep) for one in given.scored)
    for etas in range(most, 0, -1):  # the first eta is the one that corrections are made of
        # Names of files may hold bytes that are no UTF-8.
        page = _page(given, etas).encode("utf-8", "backslashreplace").decode("utf-8")
        if len(page.encode()) < LIMIT:
            return page
    raise RefimplError(
        f"the page would have {len(page.encode()):,} bytes",
        f"less than {LIMIT:,}",
        "make a page per file",
    )


def _page(given: Files, etas: int) -> str:
    """The page, with maps for that many etas of each file."""
    head = files("refimpl.report")
    first = given.scored[0].scores.model
    parts = list(sections(given, etas))
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
{_lead(given.scored[0])}
<nav aria-label="Contents"><ul>
{links}
</ul></nav>
</header>
<main>
{body}
</main>
<footer><p>Made by refimpl {__version__} from {counted(_count(given), "file")}.
This page loads nothing from elsewhere.</p></footer>
<script>
{head.joinpath("page.js").read_text("utf-8")}</script>
</body>
</html>
"""


def _count(given: Files) -> int:
    return len(given.scored) + len(given.pruned) + len(given.evaluated)


def _lead(scored: Scored) -> str:
    """What was measured and what it says, in large."""
    scores, document = scored.scores, scored.given.document
    weights = int(scores.linear_sizes.sum()) * scores.num_blocks
    pruned = int(scored.allocated[0].pruned.sum())
    tiles = {
        "blocks": str(scores.num_blocks),
        "prunable weights": f"{weights:,}",
        "to prune": f"{pruned / weights:.2%}",
        "base": str(document["base"]),
        "correction": str(document["correct"] or "none"),
        "tokens": f"{scores.tokens.samples} x {scores.tokens.seq_len}",
    }
    facts = "\n".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in tiles.items()
    )
    said = " ".join(findings(scores.sweep[0]))
    push = push_words(scores.sweep[0])
    lead = f'<p class="lead">With {escape(push)}, {escape(said)}</p>'
    return f'{lead}\n<dl class="tiles">\n{facts}\n</dl>'
