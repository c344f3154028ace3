"""Figures of evaluations side by side: perplexity and accuracy with their standard errors."""

import re
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import get_args

from refimpl.allocation.request import Correction
from refimpl.bases.base import bases
from refimpl.bases.uniform import UNIFORM
from refimpl.report import figure as fig
from refimpl.report.allocation import NAMES
from refimpl.report.inputs import EvaluationInput, MeasuredValue, PruningInput
from refimpl.show.header import counted
from refimpl.show.numbers import measured, number

RESULT_ROW = 46  # height of a row, in units of the picture
FIRST, OTHER = ("mark one-hue", "large diamond"), ("mark other-hue", "large square")
CHOSEN = "Share of correct answers; acc_norm is per character."
MEASURES = (
    ("text", "Perplexity", ("perplexity",), "Lower is better.", ".5g"),
    ("questions", "Accuracy", ("acc", "acc_norm"), CHOSEN, ".4f"),
)


def results_figures(ident: str, evaluated: Sequence[EvaluationInput]) -> Iterator[fig.ReportFigure]:
    """A picture for every text and for every set of questions: only the same are comparable."""
    for kind, title, rules, note, form in MEASURES:
        asked = [(getattr(one, kind), one) for one in evaluated]
        for i, source in enumerate(dict.fromkeys(about for about, _ in asked if about is not None)):
            rows = [
                (one.name if len(rules) == 1 else f"{one.name}, {rule}", one.measures[rule])
                for about, one in asked
                if about == source
                for rule in rules
            ]
            yield _dots(f"{ident}-{kind}{i}", title, f"{note} On {source[0]}.", rows, form)


def results_table(evaluated: Sequence[EvaluationInput]) -> fig.Table:
    """All measures of all evaluations."""
    columns = {"evaluation": [one.name for one in evaluated]}
    for name in dict.fromkeys(name for one in evaluated for name in one.measures):
        measures = [one.measures.get(name, MeasuredValue()) for one in evaluated]
        columns[name.replace("_", " ")] = [number(one.value, ".5g") for one in measures]
        if any(isfinite(one.error) for one in measures):
            columns[f"{name} stderr".replace("_", " ")] = [number(x.error, ".3g") for x in measures]
    return fig.Table.of("All measures", columns)


def prunings_table(pruned: Sequence[PruningInput]) -> fig.Table:
    """The requested and the pruned weights of all prunings."""
    columns = {"pruning": [one.name for one in pruned]}
    for key in ("model", "method", "pattern"):
        columns[key] = [str(one.file.document[key] or "-") for one in pruned]
    totals = [{key: n.sum() for key, n in one.counts.items()} for one in pruned]
    for key in ("requested", "pruned"):
        columns[f"{NAMES[key]} share"] = [f"{sums[key] / sums['weights']:.6f}" for sums in totals]
    for key in ("weights", "requested", "pruned", "zeros"):
        columns[NAMES.get(key, key)] = [f"{int(sums[key]):,}" for sums in totals]
    return fig.Table.of("Prunings", columns)


def _dots(
    ident: str, title: str, note: str, rows: Sequence[tuple[str, MeasuredValue]], form: str
) -> fig.ReportFigure:
    """A dot per row with one standard error to either side."""
    values, errors = [one.value for _, one in rows], [one.error for _, one in rows]
    x, marks = fig.spanning(title.lower(), values, None, errors=errors), list[fig.Mark]()
    for i, (name, one) in enumerate(rows):
        css, shape = OTHER if name.endswith("acc_norm") else FIRST
        said = measured(one.value, one.error, form)
        marks += [
            fig.Text((x.low, i), name, "tick whose", move=(0, -12)),
            fig.Text((x.high, i), said, "value", "end", (0, 15)),  # a long name is above
            fig.Bars([(i, one.value - one.error, one.value + one.error)], "whisker", True, True),
            fig.Points([(one.value, i)], css, shape, row=i),
        ]
    said = "; ".join(f"{name}: {number(one.value, form)}" for name, one in rows)
    columns = {
        "evaluation": [name for name, _ in rows],
        title.lower(): [number(value, ".6g") for value in values],
        "stderr": [number(error, ".4g") for error in errors],
    }
    count, lowest = len(rows), len(rows) - 24 / RESULT_ROW
    return fig.ReportFigure(
        ident,
        title,
        f"{note} Bars: one standard error.",
        (f"{title}, {count} rows", f"With standard errors if known. {said}."),
        [fig.Table.of(f"{title} with standard errors", columns)],
        x,
        fig.AxisScale("", lowest, lowest - count, texts=dict.fromkeys(range(count), "")),
        marks,
        grid="xy",
        height=RESULT_ROW * count,
        edges=(12, 426),
    )


def allocation_style(name: str) -> int:
    """The style of an allocation's line, whatever else is in the picture."""
    known = [*bases(), *get_args(Correction)]
    found = [known.index(word) for word in re.findall(r"\w+", name) if word in known]
    if len(found) > 1 and known[found[0]] == UNIFORM.name:  # what a correction alone stands for
        del found[0]
    return sum(found) if found else len(known)


def quality_figures(evaluated: Sequence[EvaluationInput]) -> Iterator[fig.ReportFigure]:
    """Perplexity against sparsity, a picture per text on which a pruned model was evaluated."""
    for i, text in enumerate(dict.fromkeys(one.text for one in evaluated if one.text is not None)):
        same = [one for one in evaluated if one.text == text]
        if any(one.pruning is not None for one in same):
            yield _quality(f"quality-{i}", text[0], same)


def _quality(ident: str, text: str, evaluated: Sequence[EvaluationInput]) -> fig.ReportFigure:
    """A line per pruner and allocation; the model that was not pruned is a level."""
    rows = []
    for one in evaluated:
        line, sparsity, who = "dense", 0.0, ("-", "-")
        if one.pruning is not None:
            who = (one.pruning.method, one.pruning.allocation)
            line, sparsity = ", ".join(who), one.pruning.sparsity
        rows.append((line, sparsity, one.measures["perplexity"], *who, one.name))
    rows.sort(key=lambda row: row[:2])
    names, at, found, pruners, allocations, whose = zip(*rows, strict=True)
    values, errors = [x.value for x in found], [x.error for x in found]
    pruned = [share for name, share, *_ in rows if name != "dense"]
    edge = max(0.02, 0.1 * (max(pruned) - min(pruned)))
    name = "fraction of zeros among the prunable weights"
    x, marks = fig.AxisScale(name, min(pruned) - edge, max(pruned) + edge), list[fig.Mark]()
    for name in dict.fromkeys(x for x in names if x != "dense"):
        part = slice(first := names.index(name), first + names.count(name))
        points = [*zip(at[part], values[part], strict=True)]
        style = allocation_style(allocations[first])
        marks.append(fig.Line(name, points, first, errors=errors[part], style=style))
    if "dense" in names:
        marks += fig.level(x, values[names.index("dense")], "target", "dense")
    said = [f"{name}: {number(value)}" for name, value in zip(whose, values, strict=True)]
    columns = {
        "line": names,
        "sparsity": [number(x, ".4g") for x in at],
        "perplexity": [number(x, ".6g") for x in values],
        "with its error": [measured(x.value, x.error) for x in found],
        "pruner": pruners,
        "allocation": allocations,
    }
    return fig.ReportFigure(
        ident,
        "Perplexity against sparsity",
        f"Lower is better. A line per pruner and allocation. On {text}.",
        (f"Perplexity over sparsity, {counted(len(said), 'evaluation')}", f"{'; '.join(said)}."),
        [fig.Table.of("Perplexity at each sparsity", columns)],
        x,
        fig.spanning("perplexity", values, None, errors=errors),
        marks,
        below=True,
    )
