"""Pictures of evaluations side by side: perplexity and accuracy with their standard errors."""

from collections.abc import Iterator, Sequence
from math import isfinite

from refimpl.report import scales, svg
from refimpl.report.html import ReportFigure, Table
from refimpl.report.inputs import EvaluationInput, MeasuredValue, PruningInput
from refimpl.show.numbers import measured, number

RESULT_ROW = 38  # height of a row, in units of the picture
FACTOR = 10  # ratio of the largest to the smallest value above which the scale is logarithmic
FORMS = {"perplexity": ".5g", "acc": ".4f", "acc_norm": ".4f"}


def results_figures(ident: str, evaluated: Sequence[EvaluationInput]) -> Iterator[ReportFigure]:
    """A picture for every text and for every set of questions: only the same are comparable."""
    texts = dict.fromkeys(one.text for one in evaluated if one.text is not None)
    for i, text in enumerate(texts):
        rows = [(one.name, one.measures["perplexity"]) for one in evaluated if one.text == text]
        yield _dots(f"{ident}-text{i}", "Perplexity", f"Lower is better. On {text[0]}.", rows)
    asked = dict.fromkeys(one.questions for one in evaluated if one.questions is not None)
    for i, questions in enumerate(asked):
        rows = [
            (f"{one.name}, {rule}", one.measures[rule])
            for one in evaluated
            if one.questions == questions
            for rule in ("acc", "acc_norm")
        ]
        note = f"Share of correct answers; acc_norm is per character. On {questions[0]}."
        yield _dots(f"{ident}-questions{i}", "Accuracy", note, rows)


def results_table(evaluated: Sequence[EvaluationInput]) -> Table:
    """All measures of all evaluations."""
    names = list(dict.fromkeys(name for one in evaluated for name in one.measures))
    columns, rows = ["evaluation"], [[one.name] for one in evaluated]
    for name in names:
        measures = [one.measures.get(name, MeasuredValue()) for one in evaluated]
        errors = any(isfinite(measure.error) for measure in measures)
        columns += [name.replace("_", " "), *(["stderr"] if errors else [])]
        for row, measure in zip(rows, measures, strict=True):
            row.append(number(measure.value, ".5g"))
            row += [number(measure.error, ".3g")] if errors else []
    return Table("All measures", columns, rows)


def prunings_table(pruned: Sequence[PruningInput]) -> Table:
    """The requested and the pruned weights of all prunings."""
    rows = []
    for one in pruned:
        document, totals = one.file.document, {key: c.sum() for key, c in one.counts.items()}
        rows.append(
            [
                one.name,
                str(document["model"]),
                str(document["method"]),
                str(document["pattern"] or "-"),
                f"{totals['requested'] / totals['weights']:.6f}",
                f"{totals['pruned'] / totals['weights']:.6f}",
                *(f"{int(totals[key]):,}" for key in ("weights", "requested", "pruned", "zeros")),
            ]
        )
    heads = ["pruning", "model", "method", "pattern", "asked share", "pruned share"]
    return Table("Prunings", [*heads, "weights", "asked", "pruned", "zeros"], rows)


def _dots(
    ident: str, title: str, note: str, rows: Sequence[tuple[str, MeasuredValue]]
) -> ReportFigure:
    """A dot per row with one standard error to either side."""
    known = [one.value for _, one in rows if isfinite(one.value)]
    log = bool(known) and min(known) > 0 and max(known) / min(known) > FACTOR
    edges = [
        one.value + side * (one.error if isfinite(one.error) else 0)
        for _, one in rows
        for side in (-1, 0, 1)
    ]
    bottom = scales.TOP + RESULT_ROW * len(rows)
    across = scales.vertical(edges, log)
    x = scales.AxisScale(across.low, across.high, scales.LEFT - 40, scales.RIGHT + 26, across.log)
    parts = []
    for tick in x.ticks(4):
        parts.append(svg.line(x(tick), scales.TOP - 8, x(tick), bottom, "grid"))
        parts.append(svg.label(x(tick), bottom + 17, f"{tick:g}", anchor="middle"))
    form = FORMS.get(title.lower(), ".4f")
    for i, (name, one) in enumerate(rows):
        y = scales.TOP + RESULT_ROW * i + 24
        parts.append(svg.label(x.start, y - 12, name, "tick whose"))
        parts.append(svg.label(x.end, y - 12, measured(one.value, one.error, form), "value", "end"))
        parts.append(svg.line(x.start, y, x.end, y, "band-line"))
        if isfinite(one.value):
            ends = (y, x(one.value - one.error), x(one.value + one.error))
            parts.append(svg.bars([ends], "whisker", sideways=True))
            points, second = [(x(one.value), y)], name.endswith("acc_norm")
            css = "mark other-hue" if second else "mark one-hue"
            parts.append(svg.marks(points, svg.LARGE_SQUARE if second else svg.LARGE_DIAMOND, css))
            parts += svg.trail(points, "hit", i)
    scale = f"{title.lower()}, log scale" if log else title.lower()
    parts.append(svg.label((x.start + x.end) / 2, bottom + 36, scale, "name", "middle"))
    said = "; ".join(f"{name}: {number(one.value, form)}" for name, one in rows)
    return ReportFigure(
        ident,
        title,
        f"{note} Bars: one standard error.",
        (f"{title}, {len(rows)} rows", f"With standard errors if known. {said}."),
        parts,
        Table(
            f"{title} with standard errors",
            ["evaluation", title.lower(), "stderr"],
            [[name, number(one.value, ".6g"), number(one.error, ".4g")] for name, one in rows],
        ),
        height=bottom + 46,
    )
