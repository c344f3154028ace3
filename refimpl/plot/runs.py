"""Several evaluated models in one table, a row each, with paired changes of the perplexity."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import nan
from textwrap import wrap
from typing import Any

import numpy as np

from refimpl.bench.tables import percent
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import EvaluationDocument, TextResult
from refimpl.evaluation.measures import Perplexity
from refimpl.show.header import terminal_width
from refimpl.show.table import Table, measured

Row = dict[str, str | float]
CHANGE = "change against "


def run_rows(evaluations: Sequence[EvaluationDocument], against: str | None = None) -> list[Row]:
    """A row per model: its perplexity on each text, and the change against one of the models.

    Evaluations of one model, by its digest, share a row. The others are compared with the run that
    is named, or the first that was not pruned, or the first; window by window, where these are
    known.
    """
    models: list[tuple[EvaluationDocument, str, dict[str, TextResult]]] = []
    often = Counter[str]()
    for x in evaluations:
        column = "" if x.text is None else _column(x.text)
        same = (
            texts
            for other, _, texts in models
            if other.model_sha256 == x.model_sha256 is not None and column not in texts
        )
        if (texts := next(same, None)) is None:  # without a digest, nothing says which model it is
            often[name := _name(x)] += 1
            texts = {}
            models.append((x, name if often[name] == 1 else f"{name} #{often[name]}", texts))
        if x.text is not None:
            texts[column] = x.text
    names = [name for _, name, _ in models]
    dense = (i for i, (x, _, _) in enumerate(models) if x.pruning is None)
    base = next(dense, 0) if against is None else _named(against, names)
    rows = []
    for i, (_, name, texts) in enumerate(models):
        row: Row = {"run": name}
        for column, text in texts.items():
            row |= _numbers(column, text.perplexity, text.perplexity_stderr)
            other = models[base][2].get(column)
            if i != base and other is not None and text.windows and other.windows:
                pair = _windows(text).minus(_windows(other))
                change = percent(pair.mean_nats, pair.nats_stderr)
                row |= _numbers(f"{column}, {CHANGE}{names[base]}", *change)
        rows.append(row)
    return rows


def _name(x: EvaluationDocument) -> str:
    """The name of a run: of the model, and of how it was pruned."""
    if (pruning := x.pruning) is None:
        return x.model
    changed = None is not pruning.sha256 != x.model_sha256 is not None
    return f"{x.model}, {pruning.name}{', weights changed since' if changed else ''}"


def _named(against: str, names: Sequence[str]) -> int:
    """The number of the run of a name, in full or up to its comma."""
    found = [i for i, name in enumerate(names) if against in (name, name.partition(",")[0])]
    if len(found) != 1:
        raise RefimplError(
            f"--against {against!r}: {len(found)} runs of this name",
            "; ".join(names),
            "use the name of one run, in full or up to its comma",
        )
    return found[0]


def _column(text: TextResult) -> str:
    """A text by its source, its digest, and how it was cut."""
    source = text.source.partition(", ")[0]
    return f"perplexity on {source} ({text.sha256[:6]}, window {text.window})"


def _numbers(column: str, value: float | None, error: float | None) -> Row:
    """A number and its standard error, as far as they are known."""
    numbers = {column: value, f"{column} stderr": error}
    return {name: x for name, x in numbers.items() if x is not None and np.isfinite(x)}


def _windows(text: TextResult) -> Perplexity:
    """The windows of a text."""
    return Perplexity(
        *(np.array([getattr(x, y) for x in text.windows]) for y in ("nats", "tokens"))
    )


def runs_table(rows: Sequence[Row]) -> Table:
    """The rows in the digits that their errors deserve, a change beside its perplexity."""
    keys = dict.fromkeys(
        key for row in rows for key in row if not key.endswith(" stderr") and CHANGE not in key
    )
    return Table({key: [_cell(row, key) for row in rows] for key in keys}, left=1)


def _cell(row: Mapping[str, Any], key: str) -> str:
    """A text; or a number with its error, and the change of it in percent."""
    value, error = row.get(key, "-"), row.get(f"{key} stderr", nan)
    if isinstance(value, str):
        return value
    shown = measured(value, error)
    if change := next((x for x in row if x.startswith(f"{key}, {CHANGE}")), None):
        size = measured(row[change], row.get(f"{change} stderr", nan), "+.3g").lstrip("+")
        shown += f" ({'+' * (row[change] > 0)}{size} %)"
    return shown


def against_text(rows: Sequence[Row]) -> list[str]:
    """What the changes in the table are, in a line; nothing if there is none."""
    found = [key.partition(CHANGE)[2] for row in rows for key in row if CHANGE in key]
    said = "paired by windows; without the noise floor of pruning"
    return ["", *wrap(f"(change against {found[0]}, {said})", terminal_width())] if found else []
