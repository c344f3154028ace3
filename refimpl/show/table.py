"""The table of blocks: what each absorbs, and how much is pruned of it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.scores import Absorption, Scores
from refimpl.method.correction import LOG_LIMIT
from refimpl.model.ops import Array
from refimpl.show.header import counted, header

ROOM = len("amplifies")  # columns on either side of the bar's middle, under these words
EIGHTHS = " ▏▎▍▌▋▊▉"
ABSORBS, AMPLIFIES, PLAIN = "\x1b[36m", "\x1b[31m", "\x1b[0m"


@dataclass(frozen=True)
class Style:
    """What the output can show: colours as escape sequences, and block characters."""

    color: bool = False
    blocks: bool = True

    @property
    def middle(self) -> str:
        """The bar's middle, a factor of 1."""
        return "│" if self.blocks else "|"


def table(scores: Scores, allocations: tuple[Allocation, ...], style: Style = Style()) -> str:
    """Header, and for every eta a row per block."""
    lines = header(scores, allocations)
    for absorption, allocation in zip(scores.sweep, allocations, strict=True):
        title = [f"eta {absorption.eta:g}"] if len(scores.sweep) > 1 else []
        rows = aligned(columns(scores, absorption, allocation, style))
        lines += ["", *title, *rows, "", *footer(scores, absorption, allocation)]
    return "\n".join(lines) + "\n"


def columns(
    scores: Scores, absorption: Absorption, allocation: Allocation, style: Style
) -> dict[str, list[str]]:
    """The table at one eta: heading to a text per block."""
    signal, values = _signal(scores, allocation.request.base)
    extra = {}
    if scores.pruned_at is not None:
        extra["drift"] = _numbers(
            np.diag(absorption.drift), "#.4g"
        )  # R_l, what pruning block l does
    if allocation.request.correct == "arrival":
        extra["arrival"] = _numbers(absorption.arrival, "#.4g")
    if allocation.request.correct == "divergence" and absorption.divergence is not None:
        extra["divergence"] = _numbers(absorption.divergence, "#.4g")
    if (grows := allocation.growth) is not None:
        linears = np.where(grows.fits, grows.rate, np.nan)
        medians = [np.median(x[~np.isnan(x)]) if (x > 0).any() else np.nan for x in linears]
        extra["kappa"] = _numbers(grows.rate if grows.rate.ndim == 1 else medians, ".3f")
    return {
        "block": [str(i) for i in range(scores.num_blocks)],
        "weights": [f"{n:,}" for n in scores.linear_sizes.sum(axis=1).tolist()],
        signal: ["-"] * scores.num_blocks if values is None else _numbers(values, "#.4g"),
        "r": _numbers(absorption.coefficient, ".4f"),
        "stderr": _numbers(absorption.stderr, ".4f"),
        f"{'absorbs':>{ROOM}}{style.middle}amplifies": [
            bar(r, style) for r in absorption.coefficient
        ],
        **extra,
        "base": _numbers(allocation.base_sparsity, ".4f"),
        "corrected": _numbers(allocation.corrected_sparsity, ".4f"),
        "pruned": [f"{count:,}" for count in allocation.num_pruned],
    }


def aligned(columns: Mapping[str, list[str]]) -> list[str]:
    """Lines of a table, right-aligned; escape sequences for colour have no width."""

    def padded(cells: list[str]) -> list[str]:
        widths = [len(re.sub(r"\x1b\[\d+m", "", cell)) for cell in cells]
        return [
            " " * (max(widths) - width) + cell for cell, width in zip(cells, widths, strict=True)
        ]

    whole = [padded([heading, *cells]) for heading, cells in columns.items()]
    return ["  ".join(cells) for cells in zip(*whole, strict=True)]


def footer(scores: Scores, absorption: Absorption, allocation: Allocation) -> list[str]:
    """The totals, and notes that explain the rows."""
    total, pruned, asked = allocation.total_weights, allocation.total_pruned, allocation.request
    lines = [
        f"pruned {pruned:,} of {total:,} ({pruned / total:.4%}), asked for {asked.sparsity:.4%}"
    ]
    if asked.compat == "peer":
        above = int((allocation.linear_sparsity > 1).any(axis=1).sum())
        lines.append(
            "compat peer restores no budget and rounds every row down"
            + (f"; {counted(above, 'block')} asked for more than 1" if above else "")
        )
    if np.ptp(allocation.linear_sparsity, axis=1).any():
        lines.append("sparsities are per linear (all of them with --json); rows show block means")
    if np.isnan(absorption.coefficient).any():
        lines.append("r is - where no token had a drift; such a block counts as r = 1")
    if np.isnan(absorption.stderr).any() and scores.tokens.samples < 2:
        lines.append("stderr is -: it takes two samples or more")
    elif (
        np.isnan(absorption.stderr[~np.isnan(absorption.coefficient)]).any() and scores.plan.subset
    ):
        lines.append("stderr is - where a block was perturbed in one sample only")
    if absorption.left_out.any():
        lines.append(f"{counted(int(absorption.left_out.sum()), 'token')} without a ratio left out")
    if scores.plan.sink == "exclude":
        sinks = counted(int(scores.sinks.sum()), "token")
        lines.append(f"{sinks} excluded as sinks, over all perturbed blocks")
    return lines


def bar(r: float, style: Style) -> str:
    """A bar for log r, to the left if r < 1; full at a factor of 3 or more, "?" for NaN."""
    if np.isnan(r):
        return "?".center(2 * ROOM + 1)
    u = np.clip(np.log(r) if r > 0 else -LOG_LIMIT, -LOG_LIMIT, LOG_LIMIT) / LOG_LIMIT
    length = abs(float(u)) * ROOM
    if not style.blocks:
        right = left = "#" * round(length)
    else:
        full, eighths = divmod(round(length * 8), 8)
        right = "█" * full + EIGHTHS[eighths].strip()
        # No characters grow to the left by eighths: this side is drawn in halves.
        full, half = divmod(round(length * 2), 2)
        left = "▐" * half + "█" * full
    sides = (left, "") if u < 0 else ("", right)
    text = f"{sides[0]:>{ROOM}}{style.middle}{sides[1]:<{ROOM}}"
    return f"{ABSORBS if u < 0 else AMPLIFIES}{text}{PLAIN}" if style.color and u else text


def _signal(scores: Scores, base: str) -> tuple[str, Array | None]:
    """Name and values, [L], of the signal that a base allocation is made from."""
    signals = scores.signals
    if base == "owl":
        return "outliers %", signals.owl_outlier_percent
    if base == "dlp":
        return f"dlp {signals.dlp_statistic}", signals.dlp_score
    if base == "alphapruning" and signals.alpha is not None:
        return "alpha", signals.alpha.mean(axis=1)
    return "signal", None


def _numbers(values: Iterable[float], form: str) -> list[str]:
    """Numbers as texts, a dash where unknown."""
    return ["-" if np.isnan(value) else format(value, form) for value in values]
