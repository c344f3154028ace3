"""The pictures of a comparison, perplexity against sparsity; and all files made of one."""

import re
from collections.abc import Iterator, Sequence
from math import exp
from pathlib import Path

import numpy as np

from refimpl.bench.document import BenchDocument
from refimpl.bench.summary import places
from refimpl.bench.tables import latex, markdown
from refimpl.report import figure as fig
from refimpl.report.results import allocation_style
from refimpl.report.standalone import picture_styles
from refimpl.report.svg import picture
from refimpl.show.numbers import number
from refimpl.storage.files import write_text


def write_tables(folder: Path, document: BenchDocument) -> Sequence[str]:
    """Write the table in Markdown and in LaTeX, and the pictures; the names of the files."""
    contents = {"table.md": markdown(document), "table.tex": latex(document)}
    for figure in bench_figures(document):
        name = re.sub("[^a-z0-9.]+", "-", figure.ident.lower())
        contents[f"{name}.svg"] = picture(figure, picture_styles()) + "\n"
    for name, text in contents.items():
        write_text(folder / name, text)
    return [*contents]


def bench_figures(document: BenchDocument) -> Iterator[fig.ReportFigure]:
    """A figure per model and pruner: multiples of the dense perplexity, the mean over texts."""
    found = [*places(document)]
    for model, pruner in dict.fromkeys((x.model, x.pruner) for x in found):
        rows = [
            (one.name, place.sparsity, exp(float(np.mean([x.nats - x.dense for x in one.texts]))))
            for place in found
            if (place.model, place.pruner) == (model, pruner)
            for one in place.allocations
        ]
        names = [*dict.fromkeys(name for name, _, _ in rows)]
        rows.sort(key=lambda row: (names.index(row[0]), row[1]))
        x = fig.spanning("fraction of the prunable weights that is pruned", [r[1] for r in rows])
        marks = list[fig.Mark]()
        for name in names:
            points = [(sparsity, value) for other, sparsity, value in rows if other == name]
            first = [row[0] for row in rows].index(name)
            marks.append(fig.Line(name, points, first, style=allocation_style(name)))
        marks += fig.level(x, 1.0, "target", "dense")
        said = [f"{name} at {sparsity:g}: {number(value)}" for name, sparsity, value in rows]
        texts = ", ".join(text.name for text in document.settings.measured_on)
        columns = {
            "allocation": [row[0] for row in rows],
            "sparsity": [f"{row[1]:g}" for row in rows],
            "multiple of the dense perplexity": [number(row[2], ".6g") for row in rows],
        }
        yield fig.ReportFigure(
            f"{model}-{pruner}",
            f"{model}, {pruner}: perplexity as a multiple of the dense model's",
            f"Lower is better. Geometric mean over {texts} and over seeds.",
            (f"Perplexity over sparsity, {model}, {pruner}", f"{'; '.join(said)}."),
            [fig.Table.of("Multiples of the dense perplexity", columns)],
            x,
            fig.spanning("multiple of the dense perplexity", [r[2] for r in rows] + [1.0], None),
            marks,
            below=True,
        )
