"""The table of blocks: what each absorbs, and how much is pruned of it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from textwrap import wrap

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.scores import Scores
from refimpl.show.findings import findings
from refimpl.show.header import counted, header, terminal_width
from refimpl.show.numbers import measured

WORDS = (("absorbs", "amplifies"), ("< 1", "> 1"), ())  # over the sides of a bar; without a bar
EIGHTHS = " ▏▎▍▌▋▊▉"
ESCAPE = re.compile(r"\x1b\[\d+m")
GLUE = "\N{NO-BREAK SPACE}"
LEAST = 1e-300  # below it, a coefficient is shown as this
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

    @property
    def plus_minus(self) -> str:
        """What stands before a standard error."""
        return "±" if self.blocks else "+-"


def table(
    scores: Scores,
    allocations: tuple[Allocation, ...],
    style: Style = Style(),
    verbose: bool = False,
) -> str:
    """What was found, a row per block, and how it came about; verbose, with all settings."""
    found, absorption, width = allocations[0], scores.sweep[0], terminal_width()
    at = f"At eta {absorption.eta:g}: " if len(scores.sweep) > 1 else ""
    for words in WORDS:  # the bar gives way to a narrow terminal
        shown = columns(scores, allocations, style, words)
        if len(ESCAPE.sub("", aligned(shown)[0])) <= width:
            break
    rows = fitted(shown)
    notes = [line for note in footer(scores, found) for line in wrap(note, width)]
    text = (at + " ".join(findings(absorption))).replace(" ± ", f"{GLUE}±{GLUE}")
    lines = [line.replace(GLUE, " ") for line in wrap(text, width)]
    said = [line.replace("±", style.plus_minus) for line in lines]
    return "\n".join([*said, "", *rows, "", *header(scores, allocations, verbose), "", *notes, ""])


def columns(
    scores: Scores,
    allocations: tuple[Allocation, ...],
    style: Style,
    words: tuple[str, ...] = WORDS[0],
) -> dict[str, list[str]]:
    """The table: heading to a text per block, without columns that are empty or all the same.

    A sweep has a column of coefficients per eta; the allocation is that of the first.
    """
    absorption, allocation = scores.sweep[0], allocations[0]
    base, asked = allocation.request.record, allocation.request.options
    weights = scores.linear_sizes.sum(axis=1)
    found = {"block": [str(i) for i in range(scores.num_blocks)]}
    if np.ptp(weights):
        found["weights"] = [f"{n:,}" for n in weights.tolist()]
    if (signal := scores.signals.get(base.name)) is not None:
        found[base.column.format(**asked)] = _numbers(signal.of_blocks, "#.4g")
    for one in scores.sweep:
        name = f"r at {one.eta:g}" if len(scores.sweep) > 1 else "r"
        pairs = zip(one.coefficient.tolist(), one.stderr.tolist(), strict=True)
        texts = [measured(r, error, "#.4g") for r, error in pairs]
        found[name] = [text.replace("±", style.plus_minus) for text in texts]
    if words and len(scores.sweep) == 1:
        room = max(map(len, words))
        logs = np.abs(np.log(np.maximum(absorption.coefficient, LEAST)))
        scale = float(np.nanmax(logs, initial=0)) or 1.0
        found[f"{words[0]:>{room}}{style.middle}{words[1]}"] = [
            bar(r, style, scale, room) for r in absorption.coefficient
        ]
    if scores.pruned_at is not None:  # R_l, what pruning block l does
        found["drift"] = _numbers(np.diag(absorption.drift), "#.3g")
    if allocation.request.correct == "arrival":
        found["arrival"] = _numbers(absorption.arrival, "#.3g")
    if allocation.request.correct == "divergence" and absorption.divergence is not None:
        found["divergence"] = _numbers(absorption.divergence, "#.3g")
    if (grows := allocation.growth) is not None:
        linears = np.where(grows.fits, grows.rate, np.nan)
        medians = [np.median(x[~np.isnan(x)]) if (x > 0).any() else np.nan for x in linears]
        found["kappa"] = _numbers(grows.rate if grows.rate.ndim == 1 else medians, "#.3g")
    if np.ptp(allocation.base_sparsity):
        found["base"] = _numbers(allocation.base_sparsity, ".4f")
    name = "sparsity" if allocation.request.correct is None else "corrected"
    found[name] = _numbers(allocation.corrected_sparsity, ".4f")
    return found | {"pruned": [f"{n:,}" for n in allocation.num_pruned]}


def aligned(columns: Mapping[str, list[str]]) -> list[str]:
    """Lines of a table, right-aligned; escape sequences for colour have no width."""

    def padded(cells: list[str]) -> list[str]:
        widths = [len(ESCAPE.sub("", cell)) for cell in cells]
        return [
            " " * (max(widths) - width) + cell for cell, width in zip(cells, widths, strict=True)
        ]

    aligned_columns = [padded([heading, *cells]) for heading, cells in columns.items()]
    return ["  ".join(cells) for cells in zip(*aligned_columns, strict=True)]


def fitted(columns: Mapping[str, list[str]]) -> list[str]:
    """Lines of a table without empty columns.

    Columns that do not fit the terminal follow in further tables, each with the first column.
    """
    (heading, first), *others = [column for column in columns.items() if any(column[1])]
    tables = [{heading: first}]
    for name, cells in others:
        line = aligned(tables[-1] | {name: cells})[0]
        if len(tables[-1]) > 1 and len(ESCAPE.sub("", line)) > terminal_width():
            tables.append({heading: first})
        tables[-1][name] = cells
    lines = [line.rstrip() for table in tables for line in ("", *aligned(table))]
    return lines[1:]


def footer(scores: Scores, allocation: Allocation) -> list[str]:
    """The totals, and notes that explain the rows."""
    total, pruned, asked = allocation.total_weights, allocation.total_pruned, allocation.request
    absorption, clipped = scores.sweep[0], 0 if asked.measured else int(allocation.clipped.sum())
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
        lines.append("r has no standard error: it takes two samples or more")
    elif (
        np.isnan(absorption.stderr[~np.isnan(absorption.coefficient)]).any() and scores.plan.subset
    ):
        lines.append("r has no standard error where a block was perturbed in one sample only")
    if asked.correct and not asked.measured and 2 * clipped >= scores.num_blocks > 1:
        lines.append(
            f"{clipped} of {counted(scores.num_blocks, 'block')} are at the clip: there the "
            "correction is the clip, not the measurement; use another --eta, or --perturbation "
            "pruning --correct divergence"
        )
    if absorption.left_out.any():
        lines.append(f"{counted(int(absorption.left_out.sum()), 'token')} without a ratio left out")
    if scores.plan.sink == "exclude":
        sinks = counted(int(scores.sinks.sum()), "token")
        lines.append(f"{sinks} excluded as sinks, over all perturbed blocks")
    return lines


def bar(r: float, style: Style, scale: float, room: int) -> str:
    """A bar for log r, to the left if r < 1; full where |log r| is the scale, "?" for NaN."""
    if np.isnan(r):
        return "?".center(2 * room + 1)
    u = float(np.clip(np.log(max(r, LEAST)) / scale, -1, 1))
    length = abs(u) * room
    if not style.blocks:
        right = left = "#" * round(length)
    else:
        full, eighths = divmod(round(length * 8), 8)
        right = "█" * full + EIGHTHS[eighths].strip()
        # No characters grow to the left by eighths: this side is drawn in halves.
        full, half = divmod(round(length * 2), 2)
        left = "▐" * half + "█" * full
    sides = (left, "") if u < 0 else ("", right)
    text = f"{sides[0]:>{room}}{style.middle}{sides[1]:<{room}}"
    return f"{ABSORBS if u < 0 else AMPLIFIES}{text}{PLAIN}" if style.color and u else text


def _numbers(values: Iterable[float], form: str) -> list[str]:
    """Numbers as texts, a dash where unknown."""
    return ["-" if np.isnan(value) else format(value, form) for value in values]
