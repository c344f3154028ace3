"""The table of blocks: what each absorbs, and how much is pruned of it; what measuring it takes."""

from textwrap import wrap

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.scores import Scores
from refimpl.method.perturbation import Noise
from refimpl.model.ops import Array
from refimpl.scoring.estimate import Estimate
from refimpl.show.findings import costs, headline, sinks
from refimpl.show.header import counted, header, terminal_width, wrapped
from refimpl.show.table import Table, measured, number
from refimpl.storage.file_system import MIB

WORDS = (("absorbs", "amplifies"), ("< 1", "> 1"), ())  # over the sides of a bar; without a bar
MIDDLE, EIGHTHS = "│", " ▏▎▍▌▋▊▉"
GLUE = "\N{NO-BREAK SPACE}"
LEAST = 1e-300  # below it, a coefficient is shown as this
ABSORBS, AMPLIFIES, PLAIN = "\x1b[36m", "\x1b[31m", "\x1b[0m"


def table(
    scores: Scores,
    allocations: tuple[Allocation, ...],
    color: bool = False,
    verbose: bool = False,
) -> str:
    """What was found, a row per block, and how it came about; verbose, with all settings."""
    found, width = allocations[0], terminal_width()
    for words in WORDS:  # the bar gives way to a narrow terminal
        rows = Table(columns(scores, allocations, color, words)).lines()
        if "" not in rows:
            break
    notes = [line for note in footer(scores, found) for line in wrap(note, width)]
    request = vars(found.request) | {"base": found.request.record.name}
    texts = headline(scores, request, found.errors, float(found.clipped.mean()))
    glued = [text.replace(" ± ", f"{GLUE}±{GLUE}") for text in texts]
    lines = [line.replace(GLUE, " ") for text in glued for line in wrap(text, width)]
    return "\n".join([*lines, "", *rows, "", *header(scores, allocations, verbose), "", *notes, ""])


def blocks_table(scores: Scores, allocation: Allocation) -> str:
    """What each block costs, and its row: the allocation alone."""
    said = " ".join(costs(scores, str(allocation.request.correct), allocation.errors))
    rows = Table(columns(scores, (allocation,))).lines()
    return "\n".join([*wrap(said, terminal_width()), "", *rows])


def columns(
    scores: Scores,
    allocations: tuple[Allocation, ...],
    color: bool = False,
    words: tuple[str, ...] = (),
) -> dict[str, list[str]]:
    """The table: heading to a text per block, without columns that are empty or all the same."""
    absorption, allocation = scores.sweep[0], allocations[0]
    base, asked = allocation.request.record, allocation.request.options
    weights = scores.linear_sizes.sum(axis=1)

    def numbers(values: Array, errors: Array | None, form: str = "#.3g") -> list[str]:
        errors = np.full(len(values), np.nan) if errors is None else errors
        pairs = zip(values.tolist(), errors.tolist(), strict=True)
        return [measured(x, e, form) for x, e in pairs]

    found = {"block": [str(i) for i in range(scores.num_blocks)]}
    if np.ptp(weights):
        found["weights"] = [f"{n:,}" for n in weights.tolist()]
    if (signal := scores.signals.get(base.name)) is not None:
        found[base.column.format(**asked)] = [number(x, "#.4g") for x in signal.of_blocks]
    for one in scores.sweep:
        name = f"r at {one.eta:g}" if len(scores.sweep) > 1 else "r"
        found[name] = numbers(one.coefficient, one.stderr, "#.4g")
    if (quiet := scores.without_sinks) is not None and sinks(scores):
        found["no noise on sinks"] = numbers(quiet.coefficient, quiet.stderr, "#.4g")
    if words and len(scores.sweep) == 1 and not allocation.request.measured:
        room = max(map(len, words))
        logs = np.abs(np.log(np.maximum(absorption.coefficient, LEAST)))
        scale = float(np.nanmax(logs, initial=0)) or 1.0
        found[f"{words[0]:>{room}}{MIDDLE}{words[1]}"] = [
            bar(r, color, scale, room) for r in absorption.coefficient
        ]
    if scores.pruned_at is not None and not allocation.request.measured:  # R_l, by pruning block l
        found["drift"] = [number(x, "#.3g") for x in np.diag(absorption.drift)]
    if allocation.request.correct == "arrival":
        found["arrival"] = [number(x, "#.3g") for x in absorption.arrival]
    if allocation.request.correct == "divergence" and absorption.divergence is not None:
        found["divergence"] = numbers(absorption.divergence, absorption.divergence_stderr)
    errors = allocation.errors
    if (grows := allocation.growth) is not None and errors is not None:
        if grows.rate.ndim == 1:
            found["kappa"] = numbers(grows.rate, errors.rate)
        else:  # of linears, the median of each block's
            fit = [row[fits] for row, fits in zip(grows.rate, grows.fits, strict=True)]
            found["kappa"] = [number(np.median(x) if x.size else np.nan, "#.3g") for x in fit]
    if np.ptp(allocation.base_sparsity):
        found["base"] = [number(x, ".4f") for x in allocation.base_sparsity]
    name = "sparsity" if allocation.request.correct is None else "corrected"
    found[name] = numbers(
        allocation.corrected_sparsity, None if errors is None else errors.sparsity, ".4f"
    )
    return found | {"to prune": [f"{n:,}" for n in allocation.num_pruned]}


def footer(scores: Scores, allocation: Allocation) -> list[str]:
    """The totals, and notes that explain the rows."""
    total, pruned, asked = allocation.total_weights, allocation.total_pruned, allocation.request
    absorption = scores.sweep[0]
    lines = [
        f"to prune: {pruned:,} of {total:,} ({pruned / total:.4%}), asked for {asked.sparsity:.4%}"
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
    if absorption.left_out.any():
        lines.append(f"{counted(int(absorption.left_out.sum()), 'token')} without a ratio left out")
    if scores.plan.sink == "exclude":
        sinks = counted(int(scores.sinks.sum()), "token")
        lines.append(f"{sinks} excluded as sinks, over all perturbed blocks")
    return lines


def bar(r: float, color: bool, scale: float, room: int) -> str:
    """A bar for log r, to the left if r < 1; full where |log r| is the scale, "?" for NaN."""
    if np.isnan(r):
        return "?".center(2 * room + 1)
    u = float(np.clip(np.log(max(r, LEAST)) / scale, -1, 1))
    full, eighths = divmod(round(abs(u) * room * 8), 8)
    sides = "", "█" * full + EIGHTHS[eighths].strip()
    if u < 0:  # no characters grow to the left by eighths: this side is drawn in halves
        full, half = divmod(round(-u * room * 2), 2)
        sides = "▐" * half + "█" * full, ""
    text = f"{sides[0]:>{room}}{MIDDLE}{sides[1]:<{room}}"
    return f"{ABSORBS if u < 0 else AMPLIFIES}{text}{PLAIN}" if color and u else text


def estimate_text(estimate: Estimate) -> str:
    """An estimate in words."""
    plan, how = estimate.plan, ["pruning"]
    if isinstance(plan, Noise):
        how = ["gaussian", counted(len(plan.eta), "eta"), counted(plan.draws, "draw")]
    threads = counted(estimate.threads, "worker" if estimate.elsewhere else "thread")
    here = " here" if estimate.elsewhere else ""
    facts = {
        "model": [estimate.model, counted(estimate.num_blocks, "block")],
        "tokens": [f"{estimate.tokens.samples} x {estimate.tokens.seq_len}"],
        "perturbed": [*how, "all blocks", counted(estimate.states, "state")],
        "passes": [
            f"{'at most ' * bool(plan.precision)}{estimate.passes:,.0f} block passes",
            f"states in {counted(estimate.units, 'group')}",
        ],
        "time": [f"about {duration(estimate.seconds)}", threads, estimate.dtype],
        "memory": [f"about {estimate.memory / MIB:,.0f} MiB resident{here}"],
    }
    return "\n".join(wrapped(facts)) + "\n"


def duration(seconds: float) -> str:
    """A time in seconds, in the unit that suits it."""
    if seconds < 180:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 60 * 180 else f"{seconds / 3600:,.0f} h"
