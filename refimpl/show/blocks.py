"""What scores say: in sentences, and a row for each block; and what measuring takes."""

from collections.abc import Mapping
from textwrap import wrap
from typing import Any

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.plan import Noise, Probes
from refimpl.allocation.scores import Absorption, AllocationErrors, Scores
from refimpl.bases.uniform import UNIFORM
from refimpl.method.absorption import nan_mean
from refimpl.method.perturbation import SINK_FACTOR
from refimpl.method.uncertainty import CONFIDENCE, t_quantile
from refimpl.model.ops import Array
from refimpl.show.header import counted, header, terminal_width
from refimpl.show.table import Table, measured, number

NEARLY_ALL = 0.95  # of the weights of a block: it is named
SOME = 6  # blocks that are named


def headline(
    scores: Scores, request: Mapping[str, Any], errors: AllocationErrors | None, clipped: float
) -> list[str]:
    """What was done, what came of it at the first eta, and what could make it wrong."""
    absorption, count = scores.sweep[0], scores.num_blocks
    said = costs(scores, errors)
    if errors is None:
        at = f"At eta {absorption.eta:g}: " if len(scores.sweep) > 1 else ""
        said = [at + " ".join(findings(absorption, scores.measured_samples)), *sinks(scores)]
        if request["correct"] and clipped >= 0.5 and count > 1:
            blocks = f"{round(clipped * count)} of {counted(count, 'block')}"
            said.append(
                f"{blocks} are at the clip: there the correction is the clip, not the measurement."
            )
    return [perturbed(scores), " ".join(said)]


def perturbed(scores: Scores) -> str:
    """What was done to the blocks."""
    at, plan = scores.pruned_at, scores.plan
    if at is None or not isinstance(plan, Probes):
        sizes = " and ".join(f"{eta:g}" for eta in plan.etas)
        return f"The paper's experiment: noise of eta {sizes} on each block's output."
    base = "" if at.base == UNIFORM.name else f" of base {at.base}"
    how = f"{plan.pruner}, to a sparsity of {at.sparsity:.4g}{base}"
    return f"Each block was pruned alone by {how}."


def costs(scores: Scores, errors: AllocationErrors | None) -> list[str]:
    """What pruning each block alone costs, and how sure the allocation is."""
    said = list[str]()
    each = None if scores.probes is None else scores.probes.divergences
    if errors is None or each is None:
        return said
    if each.ndim == 3 and (at := each[:, 1]).any():  # linears are too many for a sentence
        mean, n = nan_mean(at, axis=0), len(at)
        first = int(np.nanargmax(mean))
        error = float(np.std(at[:, first], ddof=1) / n**0.5) if n > 1 else np.nan
        size = f"{measured(float(mean[first]), error)} nats"
        times = float(mean[first] / np.nanmedian(mean))
        said.append(f"Block {first} costs {size}, {times:.2g} times the median.")
    if errors.samples < 2:
        return [*said, "One sample: no number has an error."]
    points, wanted = 100 * errors.precision, 100 * (scores.plan.precision or 0)
    of = f"{errors.samples} of {scores.tokens.samples} samples"
    sure = f"{points:.2g} percentage points ({of}, root mean square)"
    if wanted:
        sure += f"; {wanted:.3g} {'are enough' if points <= wanted else 'take more samples'}"
    return [*said, f"The sparsities of the blocks are known to {sure}."]


def _listed(blocks: list[int]) -> str:
    """Blocks by their numbers, or how many there are."""
    if len(blocks) > SOME:
        return f"{len(blocks)} blocks"
    *names, last = map(str, blocks)
    return f"blocks {', '.join(names)} and {last}" if names else f"block {last}"


def sinks(scores: Scores) -> list[str]:
    """Which block's state is mostly sinks, on which noise is, and the command that spares them."""
    share = scores.sink_share
    if not isinstance(scores.plan, Noise) or scores.plan.sink == "exclude" or not share.any():
        return []
    at = int(np.argmax(share))
    return [
        f"After block {at}, tokens of more than {SINK_FACTOR:g} times the median norm hold "
        f"{share[at]:.1%} of the squared norm, and so of the noise. To spare such tokens, run "
        "again with --sink exclude."
    ]


def sides(r: Array, error: Array, samples: int) -> tuple[int, int, int]:
    """How many blocks but the last are for certain below 1, above 1, and how many are neither."""
    margin = t_quantile(samples - 1) * error[:-1] if samples > 1 else 0 * error[:-1]
    margin = np.where(np.isfinite(margin), margin, 0)
    less, more = int((r[:-1] + margin < 1).sum()), int((r[:-1] - margin > 1).sum())
    return less, more, int(np.isfinite(r[:-1]).sum()) - less - more


def findings(absorption: Absorption, samples: int) -> list[str]:
    """Which way the blocks go, and the largest coefficient; the last block's is 1 by definition."""
    r, error = absorption.coefficient[:-1], absorption.stderr[:-1]
    if not len(r):
        return ["There is one block, and no later block that could absorb or amplify."]
    less, more, uncertain = sides(absorption.coefficient, absorption.stderr, samples)
    said = [
        f"Of {counted(len(r), 'block')}, later blocks amplify the perturbations of "
        f"{more or 'none'} and absorb those of {less or 'none'}."
    ]
    if samples < 2:
        said.append("One sample: these numbers have no error.")
    if uncertain:
        said.append(f"Uncertain at {CONFIDENCE:.0%} with {samples} samples: {uncertain}.")
    if unknown := int(np.isnan(r).sum()):
        said.append(f"Unknown: {unknown}.")
    if np.isfinite(r).any():
        at = int(np.nanargmax(r))
        said.append(f"Largest r: {measured(float(r[at]), float(error[at]))}, block {at}.")
    return said


WORDS = (("absorbs", "amplifies"), ("< 1", "> 1"), ())  # over the sides of a bar; without a bar
MIDDLE, EIGHTHS = "│", " ▏▎▍▌▋▊▉"
GLUE = "\N{NO-BREAK SPACE}"
LEAST = 1e-300  # below it, a coefficient is shown as this
ABSORBS, AMPLIFIES, PLAIN = "\x1b[36m", "\x1b[31m", "\x1b[0m"


def table(
    scores: Scores,
    allocations: tuple[Allocation, ...],
    color: bool = False,
) -> str:
    """What was found, a row per block, and how it came about."""
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
    return "\n".join([*lines, "", *rows, "", *header(scores, allocations), "", *notes, ""])


def blocks_table(scores: Scores, allocation: Allocation) -> str:
    """What each block costs, and its row: the allocation alone."""
    said = " ".join(costs(scores, allocation.errors))
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
    if words and len(scores.sweep) == 1 and not allocation.request.measured:
        room = max(map(len, words))
        logs = np.abs(np.log(np.maximum(absorption.coefficient, LEAST)))
        scale = float(np.nanmax(logs, initial=0)) or 1.0
        found[f"{words[0]:>{room}}{MIDDLE}{words[1]}"] = [
            bar(r, color, scale, room) for r in absorption.coefficient
        ]
    if scores.pruned_at is not None and not allocation.request.measured:  # R_l, by pruning block l
        found["drift"] = [number(x, "#.3g") for x in np.diag(absorption.drift)]
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
    if len(scores.sweep) > 1:
        lines.append(f"corrected and to prune are those of eta {absorption.eta:g}")
    if nearly := np.flatnonzero(allocation.corrected_sparsity > NEARLY_ALL).tolist():
        lines.append(f"more than {NEARLY_ALL:.0%} of the weights go in {_listed(nearly)}")
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
