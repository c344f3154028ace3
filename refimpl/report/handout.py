"""An explanation as a page: each step's formulas, numbers and small pictures."""

from collections.abc import Iterator
from html import escape

import numpy as np

from refimpl.explanation.explain import Explanation
from refimpl.explanation.shown_values import Figure, Step
from refimpl.report import figure as fig
from refimpl.report.page import Section, document, figure_html, grid_html, lead_html, table_html
from refimpl.show.explain import functions_said, numbers, shape
from refimpl.show.header import counted, model_facts, token_facts
from refimpl.show.table import Table, number

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
