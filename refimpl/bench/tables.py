"""What the rows of a comparison say, with errors and the noise floor: a table, curves, notes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, expm1, hypot, inf, isfinite, nan, sqrt

import numpy as np

from refimpl.bench.cells import BenchRow, Comparison, TextNats
from refimpl.evaluation.measures import LOG_MOST, Perplexity
from refimpl.method.uncertainty import t_quantile
from refimpl.model.ops import Array
from refimpl.show.header import counted
from refimpl.show.table import Table, markdown_text, measured, number

Change = tuple[float, float]
"""A change and its standard error; NaN if unknown."""
UNSURE = "~"


def percent(nats: float, error: float) -> Change:
    """A change of the nats per token and its error, as those of the perplexity in percent."""
    most = min(nats, LOG_MOST)
    return 100 * expm1(most), 100 * exp(most) * error


@dataclass(frozen=True)
class TextSummary:
    """One allocation on one text: nats per token, and two changes of them with their errors.

    They are against the dense model, whose nats are `dense`, and against the baseline, from `count`
    pairs.
    """

    nats: float
    dense: float
    growth: Change
    change: Change
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
    def is_finding(self) -> bool:
        """Whether the change is larger than Student's t times its error."""
        value, error = self.change
        return self.count > 1 and abs(value) > t_quantile(self.count - 1) * error


@dataclass(frozen=True)
class AllocationSummary:
    """One allocation in one setting, over its seeds: a summary per text."""

    name: str
    seeds: int
    passes: float | None
    texts: Sequence[TextSummary]


@dataclass(frozen=True)
class SettingSummary:
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


def summaries(comparison: Comparison) -> Iterator[SettingSummary]:
    """All settings in the order of their rows, those of one model and pruner together."""
    dense = {row.model: row for row in comparison.rows if row.pruner is None}
    grouped: dict[tuple[str, str, float], list[BenchRow]] = {}
    for row in comparison.rows:
        if row.pruner is not None:
            grouped.setdefault((row.model, row.pruner, row.sparsity), []).append(row)
    order = [*dict.fromkeys(key[:2] for key in grouped)]
    for key in sorted(grouped, key=lambda x: (order.index(x[:2]), x[2])):
        rows = grouped[key]
        floor = _floor(rows, len(comparison.settings.measured_on))
        named: dict[str, dict[int, BenchRow]] = {}
        for row in (row for row in rows if not row.jitter):
            named.setdefault(_name(row, comparison.rows), {})[row.seed] = row
        baseline = named.get(comparison.against, {})
        found = [
            _summary(name, seeds, baseline, dense.get(key[0]), floor)
            for name, seeds in named.items()
        ]
        yield SettingSummary(*key, found, floor, sum(row.jitter > 0 for row in rows))


def _name(row: BenchRow, rows: Iterable[BenchRow]) -> str:
    """The name of an allocation; of one of several files of a name with its digest."""
    same = {x.allocation_sha256 for x in rows if x.allocation == row.allocation}
    return f"{row.allocation}" + f" ({str(row.allocation_sha256)[:6]})" * (len(same) > 1)


def _floor(rows: Sequence[BenchRow], texts: int) -> list[float]:
    """Per text, the spread of an allocation and its reruns; of several allocations, pooled."""
    groups: dict[tuple[object, ...], list[list[float]]] = {}
    for row in sorted(rows, key=lambda row: -row.jitter):
        of = row.allocation, row.allocation_sha256, row.seed
        if row.jitter or of in groups:
            nats = [perplexity_of(text).mean_nats for text in row.texts]
            groups.setdefault(of, []).append(nats)
    freedom = sum(len(group) - 1 for group in groups.values())
    squares = sum(len(group) * np.var(group, axis=0) for group in groups.values())
    return [float(x) for x in np.sqrt(squares / freedom)] if freedom else [nan] * texts


def _summary(
    name: str,
    seeds: Mapping[int, BenchRow],
    baseline: Mapping[int, BenchRow],
    dense: BenchRow | None,
    floor: Sequence[float],
) -> AllocationSummary:
    """The mean over seeds, and the change over the seeds that the baseline has, too."""
    texts = []
    for i, least in enumerate(floor):
        found = {seed: perplexity_of(row.texts[i]) for seed, row in seeds.items()}
        alone = None if dense is None else perplexity_of(dense.texts[i])
        pairs = [
            x.minus(perplexity_of(baseline[seed].texts[i]))
            for seed, x in found.items()
            if seed in baseline and baseline[seed] is not seeds[seed]
        ]
        known = least if isfinite(least) else 0.0
        change = _mean_change(pairs, sqrt(2) * known)
        growth = _mean_change([x.minus(alone) for x in found.values()] if alone else [], known)
        count = len(pairs) if len(pairs) > 1 else sum(len(pair.nats) for pair in pairs)
        nats = float(np.mean([x.mean_nats for x in found.values()]))
        texts.append(TextSummary(nats, alone.mean_nats if alone else nan, growth, change, count))
    passes = next((x.passes for x in seeds.values() if x.passes is not None), None)
    return AllocationSummary(name, len(seeds), passes, texts)


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
    """A row per allocation and setting, and one of each noise floor."""
    rows = list[dict[str, str]]()
    for setting in summaries(comparison):
        at = {"model": setting.model, "pruner": setting.pruner}
        at["sparsity"] = f"{100 * setting.sparsity:.6g} %"
        for x in setting.allocations:
            passes = "" if x.passes is None else f"{x.passes:,.0f}"
            row = {"allocation": x.name, "seeds": f"{x.seeds}", "block passes": passes}
            for text, shown in zip(comparison.settings.measured_on, x.texts, strict=True):
                against = "" if x.name == comparison.against else change(shown)
                numbers = number(shown.perplexity), number(shown.multiple, ".3g"), against
                row |= dict(zip(_heads(text.name, comparison), numbers, strict=True))
            rows.append(at | row)
        if setting.reruns:
            row = {"allocation": f"noise floor ({counted(setting.reruns, 'rerun')})"}
            for text, floor in zip(comparison.settings.measured_on, setting.floor, strict=True):
                row[_heads(text.name, comparison)[-1]] = f"± {100 * floor:.2g} %"
            rows.append(at | row)
    heads = dict.fromkeys(head for row in rows for head in row)
    return Table({head: [row.get(head, "") for row in rows] for head in heads}, left=4)


def _heads(text: str, comparison: Comparison) -> tuple[str, str, str]:
    """The headings of a text's columns."""
    return f"perplexity, {text}", f"× dense, {text}", f"against {comparison.against}, {text}"


def change(text: TextSummary) -> str:
    """The change of the perplexity in percent, with its error; one that is no finding is marked."""
    value, error = percent(*text.change)
    if not isfinite(value):
        return "-"
    sign = "+" if value > 0 else ""
    mark = "" if text.is_finding else f"{UNSURE} "
    return f"{mark}{sign}{measured(value, error, '.3g')} %"


def markdown(comparison: Comparison) -> str:
    """The table in Markdown, and the notes."""
    said = (f"- {markdown_text(note)}" for note in notes(comparison))
    return "\n".join([bench_table(comparison).markdown(), "", *said, ""])


def notes(comparison: Comparison) -> list[str]:
    """How the numbers were made and how to read them, a sentence each."""
    shared, rows = comparison.settings, comparison.rows
    samples = f"{shared.samples or 'the usual'} samples of {shared.seq_len or 'the usual'} tokens"
    floor = "spread of the baseline when all sparsities move by about 1e-6, part of each error"
    if not any(row.jitter for row in rows):
        floor = "not measured (add --jitter 3)"
    sentences = [
        f"calibrated on {shared.text.name}, {samples} per seed; perplexities: geometric means over "
        "seeds",
        f"against {comparison.against}: change of the perplexity on the same windows, with its "
        "standard error over seeds, or over windows if there is one seed",
        f"{UNSURE}: a change that chance explains (within Student's t at 95 %), so no finding",
        f"noise floor: {floor}",
        "changes share models, texts and calibration, so they are not independent",
    ]
    if shared.text in shared.measured_on:
        sentences.append(f"measured on {shared.text.name}, which calibration has read, too")
    if (codes := len({row.versions["code"] for row in rows if row.versions})) > 1:
        sentences.append(f"the rows were computed by {codes} versions of the program")
    return sentences


def bench_curves(
    comparison: Comparison,
) -> dict[tuple[str, str], tuple[dict[str, Array], Sequence[str]]]:
    """By model and pruner: of each allocation its points, and on what they were measured.

    A point is (sparsity, multiple of the dense perplexity, its error), the mean over texts.
    """
    curves: dict[tuple[str, str], dict[str, list[tuple[float, float, float]]]] = {}
    for setting in summaries(comparison):
        for x in setting.allocations:
            nats = float(np.mean([text.growth[0] for text in x.texts]))
            error = hypot(*(text.growth[1] for text in x.texts)) / len(x.texts)
            value = exp(min(nats, LOG_MOST))
            named = curves.setdefault((setting.model, setting.pruner), {})
            named.setdefault(x.name, []).append((setting.sparsity, value, value * error))
    texts = [x.name for x in comparison.settings.measured_on]
    windows = max((len(text.nats) for row in comparison.rows for text in row.texts), default=0)
    said = [f"mean over {', '.join(texts)}", f"{windows} windows", "bars: standard errors"]
    return {
        key: ({x: np.array(y) for x, y in named.items()}, said) for key, named in curves.items()
    }
