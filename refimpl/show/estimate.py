"""What scoring will take, for people and as JSON."""

from dataclasses import asdict
from typing import Any

from refimpl.estimation.estimate import Estimate
from refimpl.show.header import MIB, counted, wrapped

GIGA = 10**9


def estimate_text(found: Estimate, minutes: float | None = None) -> str:
    """An estimate in words.

    Args:
        found: From `refimpl.estimation.estimate`.
        minutes: The time that samples, draws and blocks were chosen for, or None.

    Returns:
        Text, lines ended by newlines.
    """
    facts = {
        "model": [found.model, counted(found.num_blocks, "block")],
        "tokens": [f"{found.tokens.samples} x {found.tokens.seq_len}"],
        "perturbed": _perturbed(found),
        **(
            {} if minutes is None else {"budget": [f"{minutes:g} min", "for which this was chosen"]}
        ),
        "passes": _passes(found),
        "arithmetic": _arithmetic(found),
        "memory": _memory(found),
        "time": _time(found),
        "measured": _measured(found),
    }
    return (
        "\n".join(line for label, known in facts.items() for line in wrapped(label, known)) + "\n"
    )


def chosen_options(found: Estimate) -> str:
    """The options that stand for what a budget chose.

    Args:
        found: What was chosen.

    Returns:
        Options of `refimpl score`.
    """
    plan = found.plan
    return " ".join(
        [
            f"--samples {found.tokens.samples}",
            *([f"--draws {plan.draws}"] if plan.kind == "gaussian" else []),
            *([] if plan.subset is None else [f"--subset {plan.subset}"]),
        ]
    )


def estimate_document(found: Estimate, minutes: float | None = None) -> dict[str, Any]:
    """An estimate as one JSON document.

    Args:
        found: From `refimpl.estimation.estimate`.
        minutes: The time that samples, draws and blocks were chosen for, or None.

    Returns:
        Numbers, strings and objects.
    """
    work, plan = found.work, found.plan
    return {
        "model": found.model,
        "num_blocks": found.num_blocks,
        "samples": found.tokens.samples,
        "seq_len": found.tokens.seq_len,
        "perturbation": plan.kind,
        "etas": len(plan.eta) if plan.kind == "gaussian" else 1,
        "draws": plan.draws,
        "subset": plan.subset,
        "budget_minutes": minutes,
        "dtype": found.dtype,
        "threads": found.threads,
        "passes": {
            "dense": int(work.dense.sum()),
            "clean": int(work.clean.sum()),
            "pushed": int(work.perturbed.sum()),
            "total": work.passes,
        },
        "heads": work.heads,
        "loads": work.loads,
        "flop": {**asdict(found.arithmetic), "total": found.arithmetic.total},
        "memory": {**asdict(found.memory), "peak": found.memory.peak},
        "seconds": {**asdict(found.seconds), "total": found.seconds.total},
        "pace": asdict(found.pace),
    }


def _perturbed(found: Estimate) -> list[str]:
    """How many states each sample has."""
    plan = found.plan
    many = [] if plan.kind == "pruning" else [counted(len(plan.eta), "eta")]
    draws = [] if plan.kind == "pruning" else [counted(plan.draws, "draw")]
    blocks = "all" if plan.subset is None else f"{plan.subset} of {found.num_blocks}"
    return [plan.kind, *many, *draws, f"{blocks} blocks", counted(found.work.states, "state")]


def _passes(found: Estimate) -> list[str]:
    """Block passes and heads."""
    work = found.work
    dense = int(work.dense.sum())
    return [
        f"{work.passes:,} block passes",
        *([f"{dense:,} of the dense model"] if dense else []),
        f"{int(work.clean.sum()):,} of clean states",
        f"{int(work.perturbed.sum()):,} of pushed ones",
        *([f"{work.heads:,} heads"] if work.heads else []),
        f"blocks read {work.loads:,} times",
    ]


def _arithmetic(found: Estimate) -> list[str]:
    """Operations by kind."""
    kinds = asdict(found.arithmetic)
    return [
        f"{found.arithmetic.total / GIGA:,.4g} GFLOP",
        *(f"{name} {flop / GIGA:,.4g}" for name, flop in kinds.items() if flop),
    ]


def _memory(found: Estimate) -> list[str]:
    """Memory by kind."""
    memory = found.memory
    parts = {
        "states": memory.states,
        "blocks": memory.blocks,
        "mapped pages of a block": memory.pages,
        "in hand": memory.working,
        "signals": memory.signals,
        "before": memory.before,
    }
    return [
        f"about {memory.peak / MIB:,.0f} MiB resident" + (" here" if found.elsewhere else ""),
        *(f"{name} {size / MIB:,.3g}" for name, size in parts.items() if size),
        f"at most {memory.allowed / MIB:,.6g} for states (--memory)",
    ]


def _time(found: Estimate) -> list[str]:
    """Time by kind."""
    kinds = asdict(found.seconds)
    return [
        f"about {duration(found.seconds.total)}",
        *(f"{name} {duration(seconds)}" for name, seconds in kinds.items() if seconds),
    ]


def _measured(found: Estimate) -> list[str]:
    """What the time was extrapolated from."""
    pace, threads = found.pace, counted(found.threads, "worker" if found.elsewhere else "thread")
    blocks = "block" if pace.blocks == 1 else f"{pace.blocks} blocks"
    return [
        f"the time is an estimate from the first {blocks} on {found.tokens.seq_len} tokens",
        f"timed for {duration(pace.measuring)}",
        f"a pass {pace.turn * 1000:,.3g} ms on each of {threads}",
        f"a block read in {pace.load * 1000:,.3g} ms",
        found.dtype,
    ]


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Args:
        seconds: The time.

    Returns:
        Text.

    Example:
        >>> duration(0.25), duration(90), duration(9000), duration(9e6)
        ('0.25 s', '90 s', '150 min', '2,500 h')
    """
    if seconds < 180:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 60 * 180 else f"{seconds / 3600:,.0f} h"
