"""The table of blocks: what each absorbs, and what it shall lose."""

from dataclasses import dataclass

import numpy as np

from refimpl.jobs.allocate import Allocation
from refimpl.jobs.scores import Absorption, Scores
from refimpl.method.correction import LOG_LIMIT
from refimpl.model.ops import Array

ROOM = 6  # characters on either side of the bar's middle
EIGHTHS = " ▏▎▍▌▋▊▉█"
MIB = 1 << 20


@dataclass(frozen=True)
class Style:
    """What the output can show.

    Args:
        color: Whether escape sequences for colour may be used.
        blocks: Whether block characters may be used; plain ASCII otherwise.
    """

    color: bool = False
    blocks: bool = True


def table(scores: Scores, allocations: tuple[Allocation, ...], style: Style = Style()) -> str:
    """Header, and for every eta a row per block.

    Args:
        scores: What was found.
        allocations: One per eta.
        style: What the output can show.

    Returns:
        Text, lines ended by newlines.
    """
    lines = header(scores, allocations[0])
    for found, allocation in zip(scores.sweep, allocations, strict=True):
        lines += ["", *rows(scores, found, allocation, style), "", *footer(found, allocation)]
    return "\n".join(lines) + "\n"


def header(scores: Scores, allocation: Allocation) -> list[str]:
    """What was measured, on what, and how."""
    plan, tokens, run, request = scores.plan, scores.tokens, scores.run, allocation.request
    prunable = allocation.total_weights
    push = f"{plan.kind}, "
    if plan.kind == "gaussian":
        etas = ", ".join(f"{eta:g}" for eta in plan.eta)
        push += f"eta {etas}, noise scale {plan.noise_scale}, noise shape {plan.noise_shape}, "
        push += f"draws {plan.draws}, seed {plan.seed}, "
    elif scores.pruned_at is not None:
        at = scores.pruned_at
        push += f"Wanda at base {at.base}, sparsity {at.sparsity:g}, "
    options = "".join(
        f", {k} {v:g}" if isinstance(v, float) else f", {k} {v}" for k, v in request.options.items()
    )
    correction = (
        "none"
        if request.correct is None
        else f"{request.correct}, strength {request.strength:g}, at most "
        f"{request.max_correction:g}, scale {request.correction_scale} (provisional defaults)"
    )
    peak = "unknown" if run.peak_memory is None else f"{run.peak_memory / MIB:,.0f} MiB"
    return [
        f"model       {scores.model}, {scores.family}, {scores.num_blocks} blocks, "
        f"{prunable:,} prunable weights",
        f"tokens      {tokens.samples} x {tokens.seq_len}, {tokens.source}"
        + f", sha256 {tokens.sha256[:12]}",
        f"perturbed   {push}norm {plan.norm}, sink {plan.sink}, {run.dtype}",
        f"base        {request.base}{options}, sparsity {request.sparsity:g}, "
        f"limits {request.lo:g} to {request.hi:g}, compat {request.compat}",
        f"correction  {correction}",
        f"run         {run.seconds:.1f} s, peak memory {peak} (resident, mapped pages included), "
        f"{run.threads} threads, "
        + ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    ]


def rows(scores: Scores, found: Absorption, allocation: Allocation, style: Style) -> list[str]:
    """Column names and a row per block."""
    name, signal = _signal(scores, allocation.request.base)
    title = "" if found.eta is None or len(scores.sweep) == 1 else f"eta {found.eta:g}"
    lines = [title] if title else []
    lines.append(
        f"{'block':>5} {'weights':>12} {name:>10} {'r':>9} {'stderr':>8} "
        f"{'absorbs':>{ROOM}}|{'amplifies':<{ROOM + 4}} {'base':>7} {'corrected':>9} {'pruned':>12}"
    )
    for i in range(scores.num_blocks):
        r, stderr = found.coefficient[i], found.stderr[i]
        lines.append(
            f"{i:>5} {int(scores.linear_sizes.sum()):>12,} "
            f"{'-' if signal is None else f'{signal[i]:.4g}':>10} "
            f"{_number(r, '9.4f')} {_number(stderr, '8.4f')}  "
            f"{bar(r, style)}   "
            f"{allocation.base_sparsity[i]:>7.4f} {allocation.corrected_sparsity[i]:>9.4f} "
            f"{int(allocation.num_pruned[i]):>12,}"
        )
    return lines


def footer(found: Absorption, allocation: Allocation) -> list[str]:
    """Totals, and what limits the numbers."""
    lines = [
        f"pruned {allocation.total_pruned:,} of {allocation.total_weights:,} "
        f"({allocation.total_pruned / allocation.total_weights:.4%}), "
        f"asked {allocation.request.sparsity:.4%}"
    ]
    if allocation.request.correct is not None:
        lines.append(
            f"{allocation.clipped.mean():.0%} of the blocks at the clip "
            f"(|u| = log 3), where the correction no longer tells them apart"
        )
    if found.left_out.any():
        lines.append(f"{int(found.left_out.sum()):,} tokens without a drift were left out")
    return lines


def bar(r: float, style: Style) -> str:
    """A bar for log r: to the left what is absorbed, to the right what is amplified.

    Args:
        r: Absorption coefficient; NaN where unknown.
        style: What the output can show.

    Returns:
        Text of ``2 ROOM + 1`` characters (and colour); full length at a factor of 3 or more.

    Example:
        >>> bar(3.0, Style(blocks=False)), bar(1.0, Style(blocks=False))
        ('      |######', '      |      ')
    """
    if np.isnan(r):
        return " " * ROOM + "?" + " " * ROOM
    u = np.clip(np.log(r) if r > 0 else -LOG_LIMIT, -LOG_LIMIT, LOG_LIMIT) / LOG_LIMIT
    if style.blocks:
        full, eighths = divmod(round(abs(u) * ROOM * 8), 8)
        right = "█" * full + (EIGHTHS[eighths] if eighths else "")
        # Left-growing partial blocks do not exist: the left side has half-block resolution.
        left = ("▐" if eighths >= 4 else "") + "█" * full
    else:
        right = left = "#" * round(abs(u) * ROOM)
    middle = "│" if style.blocks else "|"
    if u < 0:
        body = (left.rjust(ROOM), middle, " " * ROOM)
        tint = "\x1b[34m"
    else:
        body = (" " * ROOM, middle, right.ljust(ROOM))
        tint = "\x1b[31m"
    return f"{tint}{''.join(body)}\x1b[0m" if style.color and u else "".join(body)


def _signal(scores: Scores, base: str) -> tuple[str, Array | None]:
    """Name and values of the signal a base allocation is made from."""
    signals = scores.signals
    if base == "owl":
        return "outliers %", signals.owl_outlier_percent
    if base == "dlp":
        return f"dlp {signals.dlp_statistic}", signals.dlp_score
    if base == "alphapruning" and signals.alpha is not None:
        return "alpha", signals.alpha.mean(axis=1)
    return "signal", None


def _number(x: float, form: str) -> str:
    """A number, or a dash of the same width."""
    return format("-", ">" + form.split(".")[0]) if np.isnan(x) else format(x, form)
