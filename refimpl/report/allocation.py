"""Figures of allocations: base against corrected, requested against achieved."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from refimpl.model.config import kind_of
from refimpl.model.ops import Array
from refimpl.report import figure as fig
from refimpl.report.experiment import perturbation_words
from refimpl.report.inputs import PruningInput, ScoresInput

Names = Sequence[Iterable[str]]  # of linears, per block
LINEAR_ROW = 36  # height of a linear's row, in units of the picture
NAMES = {"requested": "asked", "pruned": "pruned", "kept_zeros": "kept zeros", "zeros": "zeros"}
# Classes and shape of the shares that are drawn.
MARKS = {"requested": ("open one-hue", "circle"), "zeros": ("mark other-hue", "dot")}


def allocation_figure(ident: str, scored: ScoresInput, which: int) -> fig.ReportFigure:
    """Base against corrected sparsity of every block, at one eta."""
    allocation, document = scored.allocations[which], scored.file.document
    base, final = allocation.base_sparsity, allocation.corrected_sparsity
    at, count = perturbation_words(scored.scores.sweep[which]), len(base)
    target, correct = float(document["requested_sparsity"]), document["correct"]
    x, moved = fig.blocks_axis("block", count), final - base
    most = int(np.abs(moved).argmax())
    said = (
        f"Correction {correct}, made at {at}: largest change {moved[most]:+.4f}, block {most}."
        if correct is not None
        else "No correction was requested: both are the same."
    )
    error = np.zeros(count) if allocation.errors is None else allocation.errors.sparsity
    whiskers = [(i, final[i] - e, final[i] + e) for i, e in enumerate(error) if e > 0]
    columns = {
        "block": [str(i) for i in range(count)],
        "base": [f"{s:.4f}" for s in base],
        "corrected": [f"{s:.4f}" for s in final],
        "stderr": [f"{e:.4f}" for e in error] if whiskers else None,
        "change": [f"{change:+.4f}" for change in moved],
        "to prune": [f"{n:,}" for n in allocation.num_pruned],
        "weights": [f"{n:,}" for n in scored.scores.linear_sizes.sum(axis=1).tolist()],
    }
    return fig.ReportFigure(
        ident,
        "Base against corrected allocation",
        f"Base {document['base']}, target {target:g} over all weights. {said}",
        (
            f"Fraction pruned of every block, base {document['base']} and corrected, {at}",
            f"Base from {base.min():.4f} to {base.max():.4f}, corrected from {final.min():.4f} to "
            f"{final.max():.4f}. {said}",
        ),
        [fig.Table.of("Sparsity of every block", columns)],
        x,
        fig.spanning("fraction pruned", [target, *base, *final], room=0.12),
        [
            *fig.level(x, target, "target"),
            fig.Bars([*zip(range(count), base, final, strict=True)], "move"),
            fig.Bars(whiskers, "whisker", True),
            fig.Points([*enumerate(base)], "open one-hue", "circle", "base"),
            fig.Points([*enumerate(final)], "mark other-hue", "square", "corrected", row=0),
        ],
    )


def requested_figure(ident: str, scored: ScoresInput, which: int) -> fig.ReportFigure:
    """The sparsity that an allocation requests of every linear, at one eta."""
    allocation, scores = scored.allocations[which], scored.scores
    counts = {"weights": scores.linear_sizes, "requested": allocation.linear_pruned}
    words = (
        "Requested sparsity of every linear",
        "The allocation of each linear. Add a pruning.json to see what pruning achieved.",
    )
    return _linears(ident, words, scores.linears, allocation.linear_sparsity, counts)


def pruned_figure(ident: str, pruned: PruningInput) -> fig.ReportFigure:
    """The requested sparsity of every linear, and the zeros in its file."""
    counts, title = pruned.counts, f"Requested against achieved, {pruned.name}"
    off = int(np.abs(counts["pruned"] - counts["requested"]).sum())
    kept = int(counts["kept_zeros"].sum())
    exact = f"{off:,} more or fewer than requested" if off else "exactly as many as requested"
    more = f"; {kept:,} kept weights are zero too" if kept else ""
    note = f"Zeros in the file as a share of each linear. Pruned: {exact}{more}."
    return _linears(ident, (title, note), pruned.linears, pruned.sparsity, counts)


def _by_kind(linears: Names, numbers: Array) -> dict[str, Array]:
    """Sums of numbers per linear, [L, linears], over the experts of each block: [L] by name."""
    sums: dict[str, Array] = {}
    for i, names in enumerate(linears):
        for name, number in zip(names, numbers[i], strict=False):
            sums.setdefault(kind_of(name), np.zeros(len(numbers)))[i] += number
    return sums


def _linears(
    ident: str, words: tuple[str, str], linears: Names, sparsity: Array, counts: Mapping[str, Array]
) -> fig.ReportFigure:
    """A row per linear: requested sparsities are open circles, achieved ones dots in them.

    The experts of a block are one linear here; words are title and note.
    """
    title, note = words
    sums = {key: _by_kind(linears, x) for key, x in counts.items()}
    sums["allotted"] = _by_kind(linears, sparsity * counts["weights"])
    names = [*sums["allotted"]]
    table = {key: np.stack([*x.values()], axis=1) for key, x in sums.items()}  # [L, names]
    weights = np.where(table["weights"] > 0, table["weights"], np.nan)  # NaN: not in this block
    there = [np.flatnonzero(~np.isnan(column)).tolist() for column in weights.T]
    shares = {key: table[key] / weights for key in MARKS if key in table}
    alike: dict[bytes, list[int]] = {}  # linears whose shares are the same in every block: one row
    for j in range(len(names)):
        same = np.array([share[:, j].round(4) for share in shares.values()]).tobytes()
        alike.setdefault(same, []).append(j)
    low, high = (float(f([*shares.values()])) for f in (np.nanmin, np.nanmax))
    more = max((high - low) * 0.1, 0.02 - (high - low) / 2)  # rounding must not look large
    low, high = low - more, high + more
    x, rows, marks = fig.blocks_axis("block", len(weights)), {}, list[fig.Mark]()
    for row, (j, *others) in enumerate(alike.values()):
        rows[row + 0.5] = f"{names[j].removesuffix('_proj')} +{len(others)}" if others else names[j]
        marks.append(fig.Bars([(row + 0.5, x.low, x.high)], "band", sideways=True))
        for key, share in shares.items():
            points = [(i, row + 0.89 - 0.78 * (share[i, j] - low) / (high - low)) for i in there[j]]
            first = sum(map(len, there[:j])) if key == "requested" else None
            marks.append(fig.Points(points, *MARKS[key], NAMES[key], first))
            total = table[key][:, [j, *others]].sum() / np.nansum(weights[:, [j, *others]])
        marks.append(fig.Text((x.high, row + 0.5), f"{total:.1%}", "tick mid", move=(4, 0)))
    cells = [(j, i) for j in range(len(names)) for i in there[j]]
    columns = {
        "linear and block": [f"{names[j]} {i}" for j, i in cells],
        "linear": [names[j] for j, _ in cells],
        "block": [str(i) for _, i in cells],
        "weights": [f"{int(weights[i, j]):,}" for j, i in cells],
        "allocated": [f"{table['allotted'][i, j] / weights[i, j]:.4f}" for j, i in cells],
    }
    for key in (key for key in NAMES if key in table):
        columns[NAMES[key]] = [f"{int(table[key][i, j]):,}" for j, i in cells]
    for key, share in shares.items():
        columns[f"{NAMES[key]} share"] = [f"{share[i, j]:.4f}" for j, i in cells]
    said = "".join(
        f" {NAMES[key].capitalize()} from {np.nanmin(share):.4f} to {np.nanmax(share):.4f}."
        for key, share in shares.items()
    )
    groups = [", ".join(names[j] for j in same) for same in alike.values() if len(same) > 1]
    return fig.ReportFigure(
        ident,
        title,
        note + "".join(f" One row for {group}, which are the same." for group in groups),
        (title, f"A row per linear ({', '.join(names)}), a place per block.{said}"),
        [fig.Table.of(title, columns)],
        x,
        fig.AxisScale(
            f"fraction pruned, each row {low:.3f} to {high:.3f}", len(rows), 0, texts=rows
        ),
        marks,
        grid="",
        height=LINEAR_ROW * len(rows),
        edges=(86, 392),
    )
