"""Evaluations in one table, a row each, with paired changes of the perplexity."""

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from refimpl.bench.tables import percent
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import EvaluationDocument, TextResult
from refimpl.evaluation.measures import Perplexity
from refimpl.show.table import Table, measured

Row = Mapping[str, Any]


def run_rows(evaluations: Sequence[EvaluationDocument], against: str | None = None) -> list[Row]:
    """A row per evaluation: its text, its perplexity, and the change of it in percent.

    The change is against the run that is named, or the first on the same text that was not pruned,
    window by window, where these are known.
    """
    rows = list[Row]()
    found = [(_name(x), x, x.text) for x in evaluations if x.text is not None]
    for name, x, text in found:
        same = [
            (other, y.pruning is None, windows)
            for other, y, windows in found
            if (windows.sha256, windows.window) == (text.sha256, text.window)
        ]
        if against is None:
            bases = [(y, z) for y, dense, z in same if dense]
        else:
            bases = [(y, z) for y, _, z in same if against in (y, y.partition(",")[0])]
        row: dict[str, Any] = {"run": name, "model_sha256": x.model_sha256}
        row["text"] = text.source.partition(", ")[0]
        row |= {"text_sha256": text.sha256, "window": text.window, "windows": text.num_windows}
        row |= {"perplexity": text.perplexity, "stderr": text.perplexity_stderr}
        if bases and text is not bases[0][1] and text.windows and bases[0][1].windows:
            pair = _windows(text).minus(_windows(bases[0][1]))
            change, error = percent(pair.mean_nats, pair.nats_stderr)
            row |= {"against": bases[0][0], "change": change, "change_stderr": error}
        rows.append(row)
    if against is not None and not any("against" in row for row in rows):
        names = "; ".join(dict.fromkeys(str(row["run"]) for row in rows))
        problem = f"--against {against!r}: no run of this name beside another on its text"
        raise RefimplError(problem, names, "use the name of one run, in full or up to its comma")
    return rows


def _name(x: EvaluationDocument) -> str:
    """The name of a run: of the model, and of how it was pruned."""
    if (pruning := x.pruning) is None:
        return x.model
    changed = None is not pruning.sha256 != x.model_sha256 is not None
    return f"{x.model}, {pruning.name}{', weights changed since' if changed else ''}"


def _windows(text: TextResult) -> Perplexity:
    """The windows of a text."""
    return Perplexity(
        *(np.array([getattr(x, y) for x in text.windows]) for y in ("nats", "tokens"))
    )


def runs_table(rows: Sequence[Row]) -> Table:
    """The rows in the digits that their errors deserve."""
    return Table(
        {
            "run": [row["run"] for row in rows],
            "text": [f"{row['text']}, {row['windows']} x {row['window']}" for row in rows],
            "perplexity": [_number(row, "perplexity", "stderr") for row in rows],
            "change": [_number(row, "change", "change_stderr", "+.3g", " %") for row in rows],
        },
        left=2,
    )


def runs_lines(rows: Sequence[Row]) -> list[str]:
    """The table for a terminal, and what its changes are against."""
    lines = runs_table(rows).lines()
    if bases := dict.fromkeys(row["against"] for row in rows if "against" in row):
        said = "paired by windows; without the noise floor of pruning"
        lines += ["", f"(change against {', '.join(bases)}, {said})"]
    return lines


def _number(row: Row, name: str, error: str, form: str = ".4g", unit: str = "") -> str:
    """A number and its error, or nothing."""
    if (value := row.get(name)) is None:
        return ""
    shown = measured(value, nan if row.get(error) is None else row[error], form)
    sign = "+" if unit and value > 0 and not shown.startswith("+") else ""
    return f"{sign}{shown}{unit}"
