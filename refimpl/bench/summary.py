"""What the rows of a comparison say: means over seeds, paired changes, errors, the noise floor."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, hypot, inf, isfinite, nan, sqrt

import numpy as np

from refimpl.bench.document import BenchDocument, BenchRow, TextNats
from refimpl.evaluation.perplexity import LOG_MOST, Perplexity
from refimpl.method.uncertainty import t_quantile
from refimpl.report.inputs import MeasuredValue
from refimpl.report.runs import percent


@dataclass(frozen=True)
class TextSummary:
    """One allocation on one text: nats per token, and their change against the baseline."""

    nats: float
    dense: float
    change: MeasuredValue
    count: int

    @property
    def perplexity(self) -> float:
        """The geometric mean over seeds."""
        return exp(self.nats) if self.nats < LOG_MOST else inf

    @property
    def multiple(self) -> float:
        """Perplexity as a multiple of the dense model's."""
        return exp(min(self.nats - self.dense, LOG_MOST))

    @property
    def percent(self) -> MeasuredValue:
        """The change of the perplexity in percent."""
        return percent(self.change.value, self.change.error)

    @property
    def is_finding(self) -> bool:
        """Whether the change is larger than Student's t times its error."""
        return (
            self.count > 1
            and abs(self.change.value) > t_quantile(self.count - 1) * self.change.error
        )


@dataclass(frozen=True)
class AllocationSummary:
    """One allocation in one place, over its seeds: a summary per text."""

    name: str
    seeds: int
    passes: float | None
    texts: Sequence[TextSummary]


@dataclass(frozen=True)
class PlaceSummary:
    """A model, a pruner and a sparsity; the noise floor is in nats, per text, NaN if unknown."""

    model: str
    pruner: str
    sparsity: float
    allocations: Sequence[AllocationSummary]
    floor: Sequence[float]
    reruns: int


def perplexity_of(text: TextNats) -> Perplexity:
    """The perplexity of a row on a text."""
    return Perplexity(np.array(text.nats), np.array(text.tokens))


def places(document: BenchDocument) -> Iterator[PlaceSummary]:
    """All places in the order of their rows, those of one model and pruner together."""
    dense = {row.model: row for row in document.rows if row.pruner is None}
    grouped: dict[tuple[str, str, float], list[BenchRow]] = {}
    for row in document.rows:
        if row.pruner is not None:
            grouped.setdefault((row.model, row.pruner, row.sparsity), []).append(row)
    order = [*dict.fromkeys(key[:2] for key in grouped)]
    for key in sorted(grouped, key=lambda x: (order.index(x[:2]), x[2])):
        rows = grouped[key]
        floor = _floor(rows, len(document.settings.measured_on))
        named: dict[str, dict[int, BenchRow]] = {}
        for row in (row for row in rows if not row.jitter):
            named.setdefault(str(row.allocation), {})[row.seed] = row
        baseline = named.get(document.against, {})
        found = [
            _summary(name, seeds, baseline, dense.get(key[0]), floor)
            for name, seeds in named.items()
        ]
        yield PlaceSummary(*key, found, floor, sum(row.jitter > 0 for row in rows))


def _floor(rows: Sequence[BenchRow], texts: int) -> list[float]:
    """Per text, the spread of an allocation and its reruns; of several allocations, pooled."""
    groups: dict[tuple[object, int], list[list[float]]] = {}
    for row in sorted(rows, key=lambda row: -row.jitter):
        if row.jitter or (row.allocation, row.seed) in groups:
            nats = [perplexity_of(text).mean_nats for text in row.texts]
            groups.setdefault((row.allocation, row.seed), []).append(nats)
    freedom = sum(len(group) - 1 for group in groups.values())
    squares = sum(len(group) * np.var(group, axis=0) for group in groups.values())
    return [float(x) for x in np.sqrt(squares / freedom)] if freedom else [nan] * texts


def _summary(
    name: str,
    seeds: dict[int, BenchRow],
    baseline: dict[int, BenchRow],
    dense: BenchRow | None,
    floor: Sequence[float],
) -> AllocationSummary:
    """The mean over seeds, and the change over the seeds that the baseline has, too."""
    texts = []
    for i, least in enumerate(floor):
        nats = [perplexity_of(row.texts[i]).mean_nats for row in seeds.values()]
        alone = nan if dense is None else perplexity_of(dense.texts[i]).mean_nats
        pairs = [
            perplexity_of(row.texts[i]).minus(perplexity_of(baseline[seed].texts[i]))
            for seed, row in seeds.items()
            if seed in baseline and row is not baseline[seed]
        ]
        change = _mean_change(pairs, least if isfinite(least) else 0.0)
        count = len(pairs) if len(pairs) > 1 else sum(len(pair.nats) for pair in pairs)
        texts.append(TextSummary(float(np.mean(nats)), alone, change, count))
    passes = next((x.passes for x in seeds.values() if x.passes is not None), None)
    return AllocationSummary(name, len(seeds), passes, texts)


def _mean_change(pairs: Sequence[Perplexity], floor: float) -> MeasuredValue:
    """The mean over seeds, with the error over them, which has the floor in it, but never less.

    With one seed, the error is that over the windows, and the floor of both models beside it.
    """
    if not pairs:
        return MeasuredValue()
    changes = [pair.mean_nats for pair in pairs]
    both = sqrt(2 / len(pairs)) * floor
    if len(pairs) == 1:
        return MeasuredValue(changes[0], hypot(pairs[0].nats_stderr, both))
    error = float(np.std(changes, ddof=1)) / sqrt(len(pairs))
    return MeasuredValue(float(np.mean(changes)), max(error, both))
