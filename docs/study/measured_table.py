"""The tables of the study of measured strength, from `measured.jsonl` and `search.jsonl`."""

from collections.abc import Iterable, Mapping
from math import exp, expm1, log

import numpy as np
from effects import Row, change, nats
from grid import GEMMA, QWEN, REPORTED, SMOL

Place = tuple[str, str, float]
"""A model, a pruner and a sparsity."""

PLACE = ("model", "method", "sparsity")
HEAD = ("seed", "allocation", "predicted", *REPORTED, "kappa", "seconds")
SHORT = {SMOL: "SmolLM2-135M", GEMMA: "Gemma-3-270m", QWEN: "Qwen2.5-Coder-0.5B"}
PRUNERS = {"wanda": "Wanda", "sparsegpt": "SparseGPT", "magnitude": "magnitude"}
MOST = 1000  # percent; above, the number says nothing
BASES = ("uniform", "owl", "alphapruning", "dlp", "lsa")


def places(done: Mapping[str, Row]) -> dict[Place, list[Row]]:
    """The rows of each place, by model, pruner and sparsity."""
    found: dict[Place, list[Row]] = {}
    for row in done.values():
        found.setdefault(tuple(row[key] for key in PLACE), []).append(row)
    order = list(SHORT), list(PRUNERS)
    return {
        place: found[place]
        for place in sorted(found, key=lambda x: (order[0].index(x[0]), order[1].index(x[1]), x[2]))
    }


def title(place: Place) -> str:
    """What the rows of a place share."""
    return f"{SHORT[place[0]]}, {PRUNERS[place[1]]}, {place[2]:.0%}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]], words: int = 1) -> str:
    """Lines of a table whose first columns are words, and the others numbers."""
    first = tuple(head)
    rule = ["---"] * words + ["---:"] * (len(first) - words)
    return "\n".join(f"| {' | '.join(x)} |" for x in (first, rule, *rows))


def usual(rows: Iterable[Row], seed: int = 0) -> dict[str, Row]:
    """Rows of one seed by allocation: those of bases by the base's name."""
    return {
        row["correction"] if row["base"] == "uniform" and row["correction"] != "none"
        else row["base"]: row
        for row in rows
        if row["seed"] == seed and not row.get("probed")
    }  # fmt: skip


def perplexities(row: Row | None) -> str:
    """`speech / novel`, or nothing."""
    return "" if row is None else " / ".join(f"{exp(nats(row, text)):.1f}" for text in REPORTED)


def best_published(every: Iterable[Row]) -> str:
    """The base of the lowest mean nats over texts and seeds; empty where none ran."""
    cells: dict[str, list[float]] = {}
    for row in every:
        if row["base"] in BASES[1:] and row["correction"] == "none":
            cells.setdefault(row["base"], []).extend(nats(row, text) for text in REPORTED)
    return min(cells, key=lambda base: np.mean(cells[base]), default="")


def against(row: Row, other: Row) -> str:
    """The change of the perplexity on each text, with the standard error over windows."""
    found = (change(row, other, text) for text in REPORTED)
    return " / ".join(f"{mean:+.1f} ± {error:.1f}" for mean, error in found) + " %"


def moved(row: Row, none: Row) -> float:
    """The change of the nats per token, the mean over both texts."""
    return float(np.mean([nats(row, text) - nats(none, text) for text in REPORTED]))


def headline(done: Mapping[str, Row]) -> str:
    """A line per place: every base, measured divergence, and what it changes.

    After the table, in how many single comparisons (one other base, text and seed) it is lower.
    """
    lines: list[list[str]] = []
    single: list[float] = []
    for place, every in places(done).items():
        rows, best = usual(every), best_published(every)
        single += [x for base in BASES for logs in seed_changes(every, base) for x in logs]
        line = [title(place), *(perplexities(rows.get(name)) for name in (*BASES, "divergence"))]
        lines.append([*line, over_seeds(every, "uniform"), over_seeds(every, best), best])
    last = "divergence against uniform", "against the best published", "which"
    head = ("model, pruner, sparsity", *BASES, "divergence", *last)
    lower = f"the lower perplexity in {sum(x < 0 for x in single)} of {len(single)} comparisons."
    words = "Against each of the other five, on each text with each seed, measured divergence has"
    return f"{table(head, lines)}\n\n{words}\n{lower}"


def over_seeds(every: Iterable[Row], other: str) -> str:
    """What divergence changes, as the mean over the seeds; of one seed, with windows' errors."""
    rows, changes = usual(every), seed_changes(every, other)
    if len(changes[0]) > 1:
        return " / ".join(mean_of(logs) for logs in changes) + " %"
    return against(rows["divergence"], rows[other]) if changes[0] else ""


def seed_changes(every: Iterable[Row], other: str = "uniform") -> list[list[float]]:
    """Nats per token from another allocation to measured divergence: per text, of each seed."""
    pairs = [usual(every, seed) for seed in sorted({row["seed"] for row in every})]
    pairs = [rows for rows in pairs if {other, "divergence"} <= rows.keys()]
    return [
        [nats(rows["divergence"], text) - nats(rows[other], text) for rows in pairs]
        for text in REPORTED
    ]


def mean_of(logs: list[float]) -> str:
    """The mean change of the perplexity in percent, with its standard error over several seeds."""
    mean, error = float(np.mean(logs)), np.std(logs, ddof=1) / len(logs) ** 0.5
    return f"{100 * expm1(mean):+.1f} ± {100 * exp(mean) * error:.1f}"


def seeds(done: Mapping[str, Row]) -> str:
    """A line per place with several calibration seeds: the change of each, and the mean."""
    lines = []
    for place, every in places(done).items():
        changes = seed_changes(every)
        if len(changes[0]) < 2:
            continue
        each = [", ".join(f"{100 * expm1(x):+.1f}" for x in logs) for logs in changes]
        means = [f"{mean_of(logs)} %" for logs in changes]
        words = [f"{one}: {mean}" for one, mean in zip(each, means, strict=True)]
        lines.append([title(place), str(len(changes[0])), *words])
    return table(("model, pruner, sparsity", "seeds", *REPORTED), lines) if lines else ""


def predicted(row: Row, probed: Row) -> float:
    """Change of the sum of the fitted divergences in percent of the perplexity.

    ``100 (exp(sum_l D_l(s_l) - D_l(S)) - 1)``, ``D_l(s) = a_l exp(kappa_l (s - S))``, if the
    divergences add up, and a nat of divergence costs a nat per token.
    """
    level, rate = np.array(probed["level"]), np.array(probed["rate"])
    more = np.array(row["block_sparsity"]) - row["sparsity"]
    return 100 * expm1(float((level * np.expm1(rate * more)).sum()))


def said(percent: float) -> str:
    """A change in percent; one that is far from anything real, in a word."""
    return f"{percent:+.0f} %" if percent < MOST else f"over {MOST} %"


def probes(done: Mapping[str, Row]) -> str:
    """A line per place with probes: how errors grow, what the paper's coefficient says, the gain.

    After the table, how the spread of the errors goes with the gain, over the places.
    """
    lines, spreads, gains = [], [], []
    for place, every in places(done).items():
        rows = usual(every)
        if "divergence" not in rows:
            continue
        row = rows["divergence"]
        rate, level, r = (np.array(row[key], float) for key in ("rate", "level", "r"))
        low, middle, high = np.percentile(rate, (25, 50, 75))
        both = np.isfinite(level) & (level > 0) & np.isfinite(r) & (r > 0)
        like = np.corrcoef(np.log(r[both]), np.log(level[both]))[0, 1]
        kappa = f"{middle:.1f} ({low:.1f} to {high:.1f})"
        fits = f"{int(np.sum(row['fits']))} of {len(rate)}"
        most = f"{np.nanmax(np.abs(row['residual'])):.2f}"
        spreads.append(float(np.log(level[both]).std()))
        gains.append(moved(row, rows["uniform"]))
        line = [title(place), kappa, f"{rate[0]:.1f}", fits, most, f"{spreads[-1]:.2f}"]
        lines.append([*line, f"{like:+.2f}", f"{gains[-1]:+.3f}"])
    head = ("model, pruner, sparsity", "kappa (quartiles)", "of block 0", "blocks that fit")
    more = ("largest residual", "sd of log a", "correlation of log r, log a", "measured, nats")
    together = np.corrcoef(spreads, gains)[0, 1] if len(lines) > 2 else np.nan
    words = (
        f"Over these {len(lines)} places, the correlation of the spread of log a with the effect"
    )
    return f"{table((*head, *more), lines)}\n\n{words} is {together:+.2f}."


def predictions(done: Mapping[str, Row]) -> str:
    """Predicted and measured change of the nats per token: how often the sign is right."""
    found: list[tuple[str, float, float]] = []
    for every in places(done).values():
        for seed in {row["seed"] for row in every}:
            rows = usual(every, seed)
            if not {"uniform", "divergence"} <= rows.keys():
                continue
            for name, row in rows.items():
                if name != "uniform":
                    wanted = log(1 + predicted(row, rows["divergence"]) / 100)
                    found.append((name, wanted, moved(row, rows["uniform"])))
    lines = []
    for name in dict.fromkeys(name for name, _, _ in found):
        pairs = np.array([x[1:] for x in found if x[0] == name])
        right = int((np.sign(pairs[:, 0]) == np.sign(pairs[:, 1])).sum())
        means = (f"{x:+.3f}" for x in pairs.mean(axis=0))
        lines.append([name, f"{len(pairs)}", f"{right}", *means])
    head = ("allocation", "cells", "sign right", "predicted, mean nats", "measured, mean nats")
    return table(head, lines)


def block_passes(row: Row) -> int:
    """Passes of a block by a sample of 256 tokens that measuring a Wanda cell's divergences took.

    ``L (decided + probed) + probed variants L (L + 1) / 2``: dense passes for the statistics, clean
    ones, and those of each pruned block, or linear, and the blocks after it.
    """
    blocks, correction = len(row["block_sparsity"]), row["correction"]
    samples = 4 if row["sparsity"] == 0.6 and not row["seed"] else 2
    # The first cell of all probed each sample, as a strength that is given does; the others two.
    first = row["cell"] == f"{SMOL} wanda 0.6 uniform divergence seed 0"
    each = samples if first or correction.endswith("one sparsity") else 2
    decided, probed = (8, row["probed"]) if row.get("probed") else (samples, each)
    variants = 1 if correction.endswith("one sparsity") else 3
    variants *= 7 if correction.endswith("linears") else 1
    return blocks * (decided + probed) + probed * variants * blocks * (blocks + 1) // 2


def cost(done: Mapping[str, Row]) -> str:
    """What divergence costs and gains, where it was also probed in other ways than usual."""
    lines = []
    for place, every in places(done).items():
        rows = [r for r in every if r["correction"].startswith("divergence") and not r["seed"]]
        rows.sort(key=lambda row: (row.get("probed", 0), block_passes(row)))
        none = usual(every)["uniform"]
        for row in rows if len(rows) > 1 else ():
            probed = row.get("probed")
            how = f"{probed} of 8 samples" if probed else row["correction"]
            gain = "" if probed else against(row, none)  # those of 8 samples calibrate on others
            seconds = f"{row['score_seconds']:.0f}"
            line = [title(place), how, perplexities(row), gain, f"{block_passes(row):,}"]
            lines.append([*line, seconds])
    head = ("model, pruner, sparsity", "probes", "speech / novel", "against uniform")
    more = ("block passes", "seconds of scoring")
    return table((*head, *more), lines, 2) if lines else ""


def searched(found: Mapping[str, Row], done: Mapping[str, Row]) -> str:
    """The evolutionary search beside measured divergence and no correction."""
    lines = []
    for row in found.values():
        place = next(x for x in places(done) if row["cell"].startswith(" ".join((x[0], x[1]))))
        model, method, sparsity = row["cell"].split(" ")[:3]
        rows = usual(places(done).get((model, method, float(sparsity)), ()))
        passes, generations = row["history"][-1][1], len(row["history"])
        name = f"search, {generations} generations"
        where = title((*place[:2], float(sparsity)))
        lines.append(
            [where, name, perplexities(row), f"{passes:,}", f"{row['search_seconds']:.0f}"]
        )
        for name in ("divergence", "uniform"):
            if name in rows:
                seconds = f"{rows[name]['score_seconds']:.0f}"
                took = f"{block_passes(rows[name]):,}" if name == "divergence" else ""
                lines.append([where, name, perplexities(rows[name]), took, seconds])
    head = ("model, pruner, sparsity", "allocation", "speech / novel", "block passes", "seconds")
    return table(head, lines, 2) if lines else ""


def every_cell(done: Mapping[str, Row]) -> str:
    """A table per place, a line per cell; changes are against uniform with the same seed."""
    parts = []
    for place, every in places(done).items():
        lines = []
        for row in every:
            rows = usual(every, row["seed"])
            none, probed = rows.get("uniform"), rows.get("divergence")
            name = " + ".join(x for x in (row["base"], row["correction"]) if x != "none")
            name += f", {row['probed']} samples probed" if row.get("probed") else ""
            changed = none is not None and row is not none
            expected = said(predicted(row, probed)) if changed and probed else ""
            line = [str(row["seed"]), name, expected]
            for text in REPORTED:
                perplexity = f"{exp(nats(row, text)):.1f}"
                if none is not None and changed:
                    mean, error = change(row, none, text)
                    perplexity += f" ({mean:+.1f} ± {error:.1f} %)"
                line.append(perplexity)
            kappa = f"{row['kappa']:.1f}" if "kappa" in row else ""
            lines.append([*line, kappa, f"{row['seconds']:.0f}"])
        parts.append(f"### {title(place)}\n\n{table(HEAD, lines, 2)}")
    return "\n\n".join(parts)
