"""What a cell changed, and how its correction relates to what divergence and harm say."""

from collections.abc import Mapping
from math import exp, sqrt
from typing import Any

import numpy as np

Row = Mapping[str, Any]


def change(row: Row, none: Row, text: str) -> tuple[float, float]:
    """Change of the perplexity against no correction in percent, and its standard error.

    ``100 (exp(d) - 1)``, d the mean over windows of the difference in nats per token.
    """
    tokens = np.array(row[f"{text}_tokens"])
    d = (np.array(row[text]) - np.array(none[text])) / tokens
    error = float(d.std(ddof=1)) / sqrt(len(d))
    return 100 * (exp(d.mean()) - 1), 100 * exp(d.mean()) * error


def share(row: Row, rule: str) -> str:
    """Percent of questions answered rightly, with its standard error; empty if none was asked."""
    if rule not in row:
        return ""
    right = np.array([int(x) for x in row[rule]])
    return f"{100 * right.mean():.0f} ± {100 * right.std(ddof=1) / sqrt(len(right)):.0f}"


def agreement(row: Row, done: Mapping[str, Row]) -> float | None:
    """Correlation over the blocks of what a correction is made of with what divergence is.

    Divergence is how much pruning a block alone changes the output, so this says whether a
    correction protects the blocks whose pruning does most harm.
    """
    alike = ("model", "sparsity", "base")
    for other in done.values():
        c = other["correction"]
        same = all(row[key] == other[key] for key in alike) and np.std(row["u"]) > 0
        if same and c["quantity"] == "divergence" and not c["change"]:
            return float(np.corrcoef(row["u"], other["u"])[0, 1])
    return None


def nats(row: Row, text: str) -> float:
    """Nats per token of one cell on one text."""
    return float(sum(row[text]) / sum(row[f"{text}_tokens"]))


def harm_of_blocks(rows: list[Row]) -> np.ndarray[Any, Any]:
    """Nats per token on `tuning` that pruning all of a block more would cost, per block, [L].

    ``(nats with the block pruned more - nats of the uniform model) / more``, from `harm.jsonl`.
    """
    found = {row["block"]: nats(row, "tuning") for row in rows}
    more = rows[0]["more"]
    return np.array([(found[b] - found[-1]) / more for b in range(len(found) - 1)])


def expected_change(row: Row, none: Row, harm: np.ndarray[Any, Any]) -> float:
    """Change of the perplexity, in percent, if harms added up: ``100 (exp(harm . c) - 1)``.

    c is what the cell's blocks lose more than the uniform ones.
    """
    c = np.array(row["block_sparsity"]) - np.array(none["block_sparsity"])
    return 100 * (exp(float(harm @ c)) - 1)
