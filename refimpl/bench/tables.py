"""What the rows of a comparison say, with errors and the noise floor, in a table."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, expm1, hypot, inf, isfinite, nan, sqrt

import numpy as np

from refimpl.bench.cells import BenchRow, Comparison, TextNats
from refimpl.evaluation.likelihood import LOG_MOST, Perplexity
from refimpl.method.absorption import t_quantile
from refimpl.show.table import Table, number, with_error

Change = tuple[float, float]  # and its standard error; NaN if unknown
LEGEND = (
    "against: change of the perplexity on the same windows, with its standard error over seeds, or "
    "over windows if there is one seed; ~: chance explains it (Student's t, 95 %); first row: the "
    "noise floor, if it was measured"
)


def percent(nats: float, error: float) -> Change:
    """A change of the nats per token and its error, as those of the perplexity in percent."""
    most = min(nats, LOG_MOST)
    return 100 * expm1(most), 100 * exp(most) * error


@dataclass(frozen=True)
class Summary:
    """An allocation on a text, in nats: means over seeds, paired changes, the noise floor."""

    model: str
    pruner: str
    sparsity: float
    allocation: str
    text: str
    nats: float
    dense: float
    growth: Change
    change: Change
    count: int
    floor: float

    @property
    def perplexity(self) -> float:
        """The geometric mean over seeds."""
        return exp(self.nats) if self.nats < LOG_MOST else inf


def perplexity_of(text: TextNats) -> Perplexity:
    """The perplexity of a row on a text."""
    return Perplexity(np.array(text.nats), np.array(text.tokens))


def summaries(comparison: Comparison, against: str = "") -> Iterator[Summary]:
    """Of each setting, text and allocation, those of one model and pruner together."""
    against = against or comparison.baseline
    grouped: dict[tuple[str, str, float], list[BenchRow]] = {}
    for row in comparison.rows:
        if row.pruner is not None:
            grouped.setdefault((row.model, row.pruner, row.sparsity), []).append(row)
    order = [*dict.fromkeys(key[:2] for key in grouped)]
    for key in sorted(grouped, key=lambda x: (order.index(x[:2]), x[2])):
        (first,) = (x for x in comparison.rows if (x.model, x.pruner) == (key[0], None))
        again = {(row.allocation, row.seed) for row in grouped[key] if row.jitter}
        for i, text in enumerate(comparison.settings.measured_on):
            dense, reruns = perplexity_of(first.texts[i]), list[float]()
            runs: dict[str, dict[int, Perplexity]] = {}
            for row in grouped[key]:
                x = perplexity_of(row.texts[i])
                if (row.allocation, row.seed) in again:
                    reruns.append(x.mean_nats)
                if not row.jitter:
                    runs.setdefault(str(row.allocation), {})[row.seed] = x
            floor = float(np.std(reruns, ddof=1)) if len(reruns) > 1 else nan
            known = floor if isfinite(floor) else 0.0
            for name, seeds in runs.items():
                base = runs.get(against, {}) if name != against else {}
                pairs = [
                    x.minus(base[seed]) for seed, x in seeds.items() if seed in base
                ]
                yield Summary(
                    *key,
                    allocation=name,
                    text=text.name,
                    nats=float(np.mean([x.mean_nats for x in seeds.values()])),
                    dense=dense.mean_nats,
                    growth=_mean_change(
                        [x.minus(dense) for x in seeds.values()], known
                    ),
                    change=_mean_change(pairs, sqrt(2) * known),
                    count=len(pairs)
                    if len(pairs) > 1
                    else sum(len(x.nats) for x in pairs),
                    floor=floor,
                )


def _mean_change(pairs: Sequence[Perplexity], floor: float) -> Change:
    """The mean over seeds, with the error over them, which has the floor in it, but never less.

    With one seed, the error is that over the windows, and the floor of what is compared beside it.
    """
    if not pairs:
        return nan, nan
    changes = [pair.mean_nats for pair in pairs]
    if len(pairs) == 1:
        return changes[0], hypot(pairs[0].nats_stderr, floor)
    error = float(np.std(changes, ddof=1)) / sqrt(len(pairs))
    return float(np.mean(changes)), max(error, floor / sqrt(len(pairs)))


def bench_table(comparison: Comparison) -> Table:
    """A row per setting and allocation; that of the baseline has the noise floor."""
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    for x in summaries(comparison):
        key = x.model, x.pruner, f"{100 * x.sparsity:.6g} %", x.allocation
        row = rows.setdefault(key, {})
        row[f"perplexity, {x.text}"] = number(x.perplexity)
        row[f"× dense, {x.text}"] = number(exp(min(x.nats - x.dense, LOG_MOST)), ".3g")
        floor = f"± {100 * x.floor:.2g} %" if isfinite(x.floor) else ""
        shown = floor if x.allocation == comparison.baseline else change(x)
        row[f"against {comparison.baseline}, {x.text}"] = shown
    names = "model", "pruner", "sparsity", "allocation"
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    return Table(columns | {x: [row[x] for row in rows.values()] for x in row}, left=4)


def change(text: Summary) -> str:
    """The change of the perplexity in percent, with its error; one that is no finding is marked."""
    (nats, stderr), (value, error) = text.change, percent(*text.change)
    if not isfinite(value):
        return "-"
    is_finding = text.count > 1 and abs(nats) > t_quantile(text.count - 1) * stderr
    return f"{'' if is_finding else '~ '}{'+' * (value > 0)}{with_error(value, error, '.3g')} %"
