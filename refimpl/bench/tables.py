"""The table of a comparison, for the terminal, in Markdown and in LaTeX; and how to read it."""

import re
from collections.abc import Iterable
from math import isfinite
from textwrap import wrap

from refimpl.bench.document import BenchDocument
from refimpl.bench.summary import AllocationSummary, PlaceSummary, TextSummary, places
from refimpl.show.header import counted, terminal_width
from refimpl.show.numbers import measured, number
from refimpl.show.table import fitted

UNSURE = "~"
LATEX = {"±": r"$\pm$", "×": r"$\times$", "~": r"$\sim$", "\\": r"\textbackslash{}"}
LATEX |= {x: f"\\{x}" for x in "&%$#_{}"}


def terminal_table(document: BenchDocument) -> list[str]:
    """Lines: for every place a heading and its allocations, and at the end how to read them."""
    lines = list[str]()
    for place in places(document):
        rows = [*_rows(document, place)]
        heads = ("allocation", "seeds", *_heads(document, short=True))
        columns = {head: [row[i] for row in rows] for i, head in enumerate(heads)}
        names = columns.pop("allocation")
        width = max(map(len, names))
        columns = {"allocation".ljust(width): [name.ljust(width) for name in names], **columns}
        lines += [f"{place.model}, {place.pruner}, {100 * place.sparsity:.4g} %:"]
        lines += [*fitted(columns), ""]
    width = terminal_width()
    return lines + [
        x for note in notes(document) for x in wrap(note, width, subsequent_indent="  ")
    ]


def flat_rows(document: BenchDocument) -> list[list[str]]:
    """The heading, and a row per allocation and place."""
    rows = [["model", "pruner", "sparsity", "allocation", "seeds", *_heads(document)]]
    for place in places(document):
        where = [place.model, place.pruner, f"{100 * place.sparsity:.4g} %"]
        rows += [[*where, *row] for row in _rows(document, place)]
    return rows


def markdown(document: BenchDocument) -> str:
    """The table in Markdown, and the notes."""
    head, *rows = flat_rows(document)
    rule = ["---"] * 4 + ["---:"] * (len(head) - 4)
    lines = [f"| {' | '.join(x.replace('|', '/') for x in row)} |" for row in (head, rule, *rows)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(document)), ""])


def latex(document: BenchDocument) -> str:
    """The table in LaTeX, which needs no package; the notes as comments."""
    head, *rows = (" & ".join(map(_escaped, row)) + r" \\" for row in flat_rows(document))
    form = "llll" + "r" * (len(flat_rows(document)[0]) - 4)
    lines = [rf"\begin{{tabular}}{{{form}}}", r"\hline", head, r"\hline", *rows, r"\hline"]
    return "\n".join([*(f"% {x}" for x in notes(document)), *lines, r"\end{tabular}", ""])


def _escaped(text: str) -> str:
    """A text as LaTeX shows it."""
    return re.sub("[" + re.escape("".join(LATEX)) + "]", lambda x: LATEX[x[0]], text)


def _heads(document: BenchDocument, short: bool = False) -> Iterable[str]:
    """The headings of numbers; short ones differ in the spaces at their ends."""
    yield "block passes"
    for i, text in enumerate(document.settings.measured_on):
        end = " " * i if short else f", {text.name}"
        yield from (text.name, f"× dense{end}", f"against {document.against}{end}")


def _rows(document: BenchDocument, place: PlaceSummary) -> Iterable[list[str]]:
    """A row per allocation, and one of the noise floor."""
    for found in place.allocations:
        is_baseline = found.name == document.against
        yield [found.name, str(found.seeds), *_cells(found, is_baseline)]
    if place.reruns:
        texts = [["", "", f"± {100 * floor:.2g} %"] for floor in place.floor]
        name = f"noise floor ({counted(place.reruns, 'rerun')})"
        yield [name, "", "", *(x for text in texts for x in text)]


def _cells(found: AllocationSummary, is_baseline: bool) -> Iterable[str]:
    """The numbers of an allocation."""
    yield "" if found.passes is None else f"{found.passes:,.0f}"
    for text in found.texts:
        yield number(text.perplexity)
        yield number(text.multiple, ".3g")
        yield "" if is_baseline else _change(text)


def _change(text: TextSummary) -> str:
    """The change in percent; one that is no finding is marked."""
    percent = text.percent
    if not isfinite(percent.value):
        return "-"
    sign = "+" if percent.value > 0 else ""
    mark = "" if text.is_finding else f"{UNSURE} "
    return f"{mark}{sign}{measured(percent.value, percent.error, '.3g')} %"


def notes(document: BenchDocument) -> list[str]:
    """How the numbers were made and how to read them, a sentence each."""
    shared, rows = document.settings, document.rows
    samples = f"{shared.samples} samples of {shared.seq_len or 'the usual'} tokens per seed"
    floor = "spread of the baseline when all sparsities move by about 1e-6, part of each error"
    if not any(row.jitter for row in rows):
        floor = "not measured (add --jitter 3)"
    sentences = [
        f"calibrated on {shared.text.name}, {samples}; perplexities: geometric means over seeds",
        f"against {document.against}: change of the perplexity on the same windows, with its "
        "standard error over seeds, or over windows if there is one seed",
        f"{UNSURE}: a change that chance explains (within Student's t at 95 %), so no finding",
        f"noise floor: {floor}",
        "changes share models, texts and calibration, so they are not independent",
    ]
    if shared.text in shared.measured_on:
        sentences.append(f"measured on {shared.text.name}, which calibration has read, too")
    if (codes := len({row.versions["code"] for row in rows if row.versions})) > 1:
        sentences.append(f"the rows were computed by {codes} versions of the program")
    return sentences
