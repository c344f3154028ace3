"""What the rows of a comparison say, with errors and the noise floor: tables, curves, notes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, expm1, hypot, inf, isfinite, nan, sqrt
from textwrap import wrap

import numpy as np

from refimpl.bench.cells import BenchDocument, BenchRow, TextNats
from refimpl.evaluation.measures import LOG_MOST, Perplexity
from refimpl.method.uncertainty import t_quantile
from refimpl.model.ops import Array
from refimpl.show.header import counted, terminal_width
from refimpl.show.table import Table, markdown_text, measured, number

Change = tuple[float, float]
"""A change and its standard error; NaN if unknown."""


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
        pairs, growths = (
            [
                perplexity_of(row.texts[i]).minus(perplexity_of(other.texts[i]))
                for row, other in rows
                if other is not None and row is not other
            ]
            for rows in (
                [(row, baseline.get(seed)) for seed, row in seeds.items()],
                [(row, dense) for row in seeds.values()],
            )
        )
        known = least if isfinite(least) else 0.0
        change, growth = _mean_change(pairs, sqrt(2) * known), _mean_change(growths, known)
        count = len(pairs) if len(pairs) > 1 else sum(len(pair.nats) for pair in pairs)
        texts.append(TextSummary(float(np.mean(nats)), alone, growth, change, count))
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


UNSURE = "~"


def markdown(document: BenchDocument) -> str:
    """The table in Markdown, and the notes."""
    said = (f"- {markdown_text(note)}" for note in notes(document))
    return "\n".join([flat_table(document).markdown(), "", *said, ""])


def terminal_table(document: BenchDocument) -> list[str]:
    """Lines: for every place a heading and its allocations, and at the end how to read them."""
    lines = list[str]()
    for place in places(document):
        heads = ["allocation", "seeds", *_heads(document, short=True)]
        table = _table(heads, [*_rows(document, place)], left=1)
        lines += [f"{place.model}, {place.pruner}, {100 * place.sparsity:.4g} %:"]
        lines += [*table.lines(), ""]
    width = terminal_width()
    return lines + [
        x for note in notes(document) for x in wrap(note, width, subsequent_indent="  ")
    ]


def flat_table(document: BenchDocument) -> Table:
    """A row per allocation and place."""
    heads = ["model", "pruner", "sparsity", "allocation", "seeds", *_heads(document)]
    rows = [
        [place.model, place.pruner, f"{100 * place.sparsity:.4g} %", *row]
        for place in places(document)
        for row in _rows(document, place)
    ]
    return _table(heads, rows, left=4)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    """The table of some rows."""
    return Table({head: [row[i] for row in rows] for i, head in enumerate(heads)}, left)


def _heads(document: BenchDocument, short: bool = False) -> Iterable[str]:
    """The headings of numbers; short ones differ in the spaces at their ends."""
    yield "block passes"
    for i, text in enumerate(document.settings.measured_on):
        end = " " * i if short else f", {text.name}"
        yield from (text.name, f"× dense{end}", f"against {document.against}{end}")


def _rows(document: BenchDocument, place: PlaceSummary) -> Iterable[list[str]]:
    """A row per allocation, and one of the noise floor."""
    for found in place.allocations:
        is_baseline = found.name == document.against
        yield [found.name, str(found.seeds), *_cells(found, is_baseline)]
    if place.reruns:
        texts = [["", "", f"± {100 * floor:.2g} %"] for floor in place.floor]
        name = f"noise floor ({counted(place.reruns, 'rerun')})"
        yield [name, "", "", *(x for text in texts for x in text)]


def _cells(found: AllocationSummary, is_baseline: bool) -> Iterable[str]:
    """The numbers of an allocation."""
    yield "" if found.passes is None else f"{found.passes:,.0f}"
    for text in found.texts:
        yield number(text.perplexity)
        yield number(text.multiple, ".3g")
        yield "" if is_baseline else change(text)


def change(text: TextSummary) -> str:
    """The change of the perplexity in percent, with its error; one that is no finding is marked."""
    value, error = percent(*text.change)
    if not isfinite(value):
        return "-"
    sign = "+" if value > 0 else ""
    mark = "" if text.is_finding else f"{UNSURE} "
    return f"{mark}{sign}{measured(value, error, '.3g')} %"


def notes(document: BenchDocument) -> list[str]:
    """How the numbers were made and how to read them, a sentence each."""
    shared, rows = document.settings, document.rows
    samples = f"{shared.samples} samples of {shared.seq_len or 'the usual'} tokens per seed"
    floor = "spread of the baseline when all sparsities move by about 1e-6, part of each error"
    if not any(row.jitter for row in rows):
        floor = "not measured (add --jitter 3)"
    sentences = [
        f"calibrated on {shared.text.name}, {samples}; perplexities: geometric means over seeds",
        f"against {document.against}: change of the perplexity on the same windows, with its "
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
    document: BenchDocument,
) -> dict[tuple[str, str], tuple[dict[str, Array], Sequence[str]]]:
    """By model and pruner: of each allocation its points, and on what they were measured.

    A point is (sparsity, multiple of the dense perplexity, its error), the mean over texts.
    """
    curves: dict[tuple[str, str], dict[str, list[tuple[float, float, float]]]] = {}
    for place in places(document):
        for x in place.allocations:
            nats = float(np.mean([text.growth[0] for text in x.texts]))
            error = hypot(*(text.growth[1] for text in x.texts)) / len(x.texts)
            value = exp(min(nats, LOG_MOST))
            named = curves.setdefault((place.model, place.pruner), {})
            named.setdefault(x.name, []).append((place.sparsity, value, value * error))
    texts = [x.name for x in document.settings.measured_on]
    windows = max(len(text.nats) for row in document.rows for text in row.texts)
    said = [f"mean over {', '.join(texts)}", f"{windows} windows", "bars: standard errors"]
    return {
        key: ({x: np.array(y) for x, y in named.items()}, said) for key, named in curves.items()
    }
