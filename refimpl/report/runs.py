"""Several runs side by side, a row each: scores, prunings and evaluations of the same pruning."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import exp, expm1, isfinite
from textwrap import wrap
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.evaluation.measures import LOG_MOST, Perplexity
from refimpl.report.inputs import (
    EvaluationInput,
    MeasuredValue,
    ReportInput,
    ScoresInput,
    named,
)
from refimpl.show.header import joined, terminal_width
from refimpl.show.table import Table, measured, number

CHANGE = "change against "
Row = dict[str, str | float]


def run_rows(inputs: Sequence[ReportInput], against: str | None = None) -> list[Row]:
    """A row per run; what was measured of one model, by its digest, shares a row with its pruning.

    A row has its paired change, where windows are known, against the run that is named, or the
    first that was not pruned, or the first.
    """
    rows, owners = list[Row](), list[ReportInput]()
    measured: list[dict[str, Perplexity]] = []
    for x in inputs:
        facts = dict(_measures(x))
        free = [i for i, row in enumerate(rows) if not row.keys() & facts.keys()]
        same = [i for i in free if isinstance(x, EvaluationInput) and _same_model(x, owners[i])]
        if same:  # of several copies, the one in this file, or of this name
            best = max(
                same, key=lambda i: (owners[i].file.path == x.file.path, owners[i].name == x.name)
            )
            rows[best] |= facts
            measured[best] |= dict(_windows(x))
        else:
            owners.append(replace(x, name=f"{x.name}, scores") if isinstance(x, ScoresInput) else x)
            rows.append({"run": "", "model": x.model})
            if (y := x.pruning) is not None:
                rows[-1] |= {"pruner": y.method, "allocation": y.allocation, "sparsity": y.sparsity}
            rows[-1] |= facts
            measured.append(dict(_windows(x)))
    for row, x in zip(rows, named(owners), strict=True):
        row["run"] = x.name
    if rows:
        base = _baseline(rows, against)
        for row, texts in zip(rows, measured, strict=True):
            for text in texts.keys() & measured[base].keys() if row is not rows[base] else ():
                pair = texts[text].minus(measured[base][text])
                change = percent(pair.mean_nats, pair.nats_stderr)
                label = f"{CHANGE}{rows[base]['run']} on {text}"
                row |= {label: change.value, f"{label} stderr": change.error}
    columns = dict.fromkeys(key for row in rows for key in row)
    return [{key: row[key] for key in columns if key in row} for row in rows]


def percent(nats: float, error: float) -> MeasuredValue:
    """A change of the nats per token and its error, as those of the perplexity in percent."""
    most = min(nats, LOG_MOST)
    return MeasuredValue(100 * expm1(most), 100 * exp(most) * error)


def _baseline(rows: Sequence[Row], against: str | None) -> int:
    """Which run the others are compared with; it may be named by its folder or in full."""
    names = [str(row["run"]) for row in rows]
    if against is None:
        return next((i for i, row in enumerate(rows) if "pruner" not in row), 0)
    found = [i for i, name in enumerate(names) if against in (name, name.partition(",")[0])]
    if len(found) != 1:
        raise RefimplError(
            f"--against {against!r}: {len(found)} runs of this name",
            "; ".join(names),
            "use the name of one run, in full or up to its comma",
        )
    return found[0]


def _windows(x: ReportInput) -> Iterator[tuple[str, Perplexity]]:
    """The windows of an evaluation's text, by its name."""
    text = x.file.document.get("text")
    if isinstance(x, EvaluationInput) and text and text.get("windows"):
        columns = [[window[key] for window in text["windows"]] for key in ("nats", "tokens")]
        yield _measured_on(x), Perplexity(*map(np.array, columns))


def _measured_on(x: EvaluationInput, measure: str = "perplexity") -> str:
    """A text by its source, its digest, and how it was cut; or questions."""
    source, sha256 = x.sources[measure]
    window = x.file.document["text"].get("window") if measure == "perplexity" else None
    cut = "" if window is None else f", window {window}"
    return f"{source.partition(',')[0]} ({sha256[:6]}{cut})"


def _same_model(x: ReportInput, y: ReportInput) -> bool:
    """Whether two files are about one model: they say so by its digest, or are one record."""
    one_record = x.file.path == y.file.path and x.pruning == y.pruning is not None
    return one_record or x.sha256 == y.sha256 is not None


def _measures(x: ReportInput) -> Iterator[tuple[str, str | float]]:
    """What was measured: coefficients, or the quality on a text and on questions."""
    if isinstance(x, ScoresInput):
        r, document = x.scores.sweep[0].coefficient, x.file.document
        yield "base", str(document["base"])
        yield "correction", str(document["correct"] or "none")
        yield "r < 1", int((r < 1).sum())
        yield "r > 1", int((r > 1).sum())
        if np.isfinite(r[:-1]).any():
            yield "largest r", float(np.nanmax(r[:-1]))
    if isinstance(x, EvaluationInput):
        for name, measure in x.measures.items():
            if isfinite(measure.value):
                label = f"{name} on {_measured_on(x, name)}"
                yield label, measure.value
                if isfinite(measure.error):
                    yield f"{label} stderr", measure.error


def runs_table(rows: list[Row]) -> Table:
    """The rows without what the name of a run says already, in the digits that errors deserve."""
    keys = dict.fromkeys(key for row in rows for key in row if not key.endswith(" stderr"))
    columns = dict.fromkeys(key for key in keys if not key.startswith(CHANGE))
    for key in ("pruner", "allocation", "sparsity", "base", "correction"):
        columns.pop(key, None)
    if len({row["model"] for row in rows}) == 1:
        columns.pop("model")
    cells = {key: [_cell(row, key) for row in rows] for key in columns}
    return Table(cells | {"run": [*map(_run, rows)]}, left=1, caption="All runs")


def runs_text(rows: list[Row]) -> str:
    """The table of the rows, and what a change in it is."""
    lines = runs_table(rows).lines()
    if changed := [key for row in rows for key in row if key.startswith(CHANGE)]:
        base = changed[0].removeprefix(CHANGE).rpartition(" on ")[0]
        note = f"(change against {base}, paired by windows; without the noise floor of pruning)"
        lines += ["", *wrap(note, terminal_width())]
    return joined(lines)


def _run(row: Row) -> str:
    """The name of a run; of scores with what was allocated."""
    correction = "" if row.get("correction") in (None, "none") else f" + {row['correction']}"
    return f"{row['run']}, {row['base']}{correction}" if "base" in row else str(row["run"])


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key, "-")
    if isinstance(value, float):
        shown = measured(value, row.get(f"{key} stderr", float("nan")))
        for name in row if key.startswith("perplexity on ") else ():
            if name.startswith(CHANGE) and name.endswith(key.removeprefix("perplexity")):
                change = measured(row[name], row[f"{name} stderr"], "+.3g")
                shown += f" ({'+' * (row[name] > 0 and change[0] != '+')}{change} %)"
        return shown
    return value if isinstance(value, str) else number(value)
