"""The estimate of what scoring will take, for people and as JSON."""

from dataclasses import asdict
from typing import Any

from refimpl.estimation.estimate import Estimate
from refimpl.show.header import MIB, counted, wrapped

GIGA = 10**9


def estimate_text(estimate: Estimate, minutes: float | None = None) -> str:
    """An estimate in words, and the time in minutes that it was chosen for."""
    budget = (
        {} if minutes is None else {"budget": [f"{minutes:g} min", "for which this was chosen"]}
    )
    facts = {
        "model": [estimate.model, counted(estimate.num_blocks, "block")],
        "tokens": [f"{estimate.tokens.samples} x {estimate.tokens.seq_len}"],
        "perturbed": _perturbed(estimate),
        **budget,
        "passes": _passes(estimate),
        "arithmetic": _arithmetic(estimate),
        "memory": _memory(estimate),
        "time": _time(estimate),
        "measured": _measured(estimate),
    }
    return "\n".join(wrapped(facts)) + "\n"


def chosen_options(estimate: Estimate) -> str:
    """The options of `refimpl score` for what a budget chose."""
    plan = estimate.plan
    return " ".join(
        [
            f"--samples {estimate.tokens.samples}",
            *([f"--draws {plan.draws}"] if plan.kind == "gaussian" else []),
            *([] if plan.subset is None else [f"--subset {plan.subset}"]),
        ]
    )


def estimate_document(estimate: Estimate, minutes: float | None = None) -> dict[str, Any]:
    """An estimate as one JSON document."""
    work, plan = estimate.work, estimate.plan
    return {
        "model": estimate.model,
        "num_blocks": estimate.num_blocks,
        "samples": estimate.tokens.samples,
        "seq_len": estimate.tokens.seq_len,
        "perturbation": plan.kind,
        "etas": len(plan.eta) if plan.kind == "gaussian" else 1,
        "draws": plan.draws,
        "subset": plan.subset,
        "budget_minutes": minutes,
        "dtype": estimate.dtype,
        "threads": estimate.threads,
        "passes": {
            "dense": int(work.dense.sum()),
            "clean": int(work.clean.sum()),
            "pushed": int(work.perturbed.sum()),
            "total": work.passes,
        },
        "heads": work.heads,
        "loads": work.loads,
        "flop": {**asdict(estimate.arithmetic), "total": estimate.arithmetic.total},
        "memory": {**asdict(estimate.memory), "peak": estimate.memory.peak},
        "seconds": {**asdict(estimate.seconds), "total": estimate.seconds.total},
        "pace": asdict(estimate.pace),
    }


def _perturbed(estimate: Estimate) -> list[str]:
    """How many states each sample has."""
    plan = estimate.plan
    gaussian = plan.kind == "gaussian"
    noise = [counted(len(plan.eta), "eta"), counted(plan.draws, "draw")] if gaussian else []
    blocks = "all" if plan.subset is None else f"{plan.subset} of {estimate.num_blocks}"
    return [plan.kind, *noise, f"{blocks} blocks", counted(estimate.work.states, "state")]


def _passes(estimate: Estimate) -> list[str]:
    """Block passes and heads."""
    work = estimate.work
    dense = int(work.dense.sum())
    return [
        f"{work.passes:,} block passes",
        *([f"{dense:,} of the dense model"] if dense else []),
        f"{int(work.clean.sum()):,} of clean states",
        f"{int(work.perturbed.sum()):,} of perturbed ones",
        *([f"{work.heads:,} heads"] if work.heads else []),
        f"blocks read {work.loads:,} times",
    ]


def _arithmetic(estimate: Estimate) -> list[str]:
    """Operations by kind."""
    kinds = asdict(estimate.arithmetic)
    return [
        f"{estimate.arithmetic.total / GIGA:,.4g} GFLOP",
        *(f"{name} {flop / GIGA:,.4g}" for name, flop in kinds.items() if flop),
    ]


def _memory(estimate: Estimate) -> list[str]:
    """Memory by kind."""
    memory = estimate.memory
    parts = {
        "states": memory.states,
        "blocks": memory.blocks,
        "mapped pages of a block": memory.pages,
        "in hand": memory.working,
        "signals": memory.signals,
        "before": memory.before,
    }
    return [
        f"about {memory.peak / MIB:,.0f} MiB resident" + (" here" if estimate.elsewhere else ""),
        *(f"{name} {size / MIB:,.3g}" for name, size in parts.items() if size),
        f"at most {memory.allowed / MIB:,.6g} for states (--memory)",
    ]


def _time(estimate: Estimate) -> list[str]:
    """Time by kind."""
    kinds = asdict(estimate.seconds)
    return [
        f"about {duration(estimate.seconds.total)}",
        *(f"{name} {duration(seconds)}" for name, seconds in kinds.items() if seconds),
    ]


def _measured(estimate: Estimate) -> list[str]:
    """What the time was extrapolated from."""
    pace = estimate.pace
    threads = counted(estimate.threads, "worker" if estimate.elsewhere else "thread")
    blocks = "block" if pace.blocks == 1 else f"{pace.blocks} blocks"
    return [
        f"the time is an estimate from the first {blocks} on {estimate.tokens.seq_len} tokens",
        f"timed for {duration(pace.measuring)}",
        f"a pass {pace.turn * 1000:,.3g} ms on each of {threads}",
        f"a block read in {pace.load * 1000:,.3g} ms",
        estimate.dtype,
    ]


def duration(seconds: float) -> str:
    """A time in seconds, in the unit that suits it."""
    if seconds < 180:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 60 * 180 else f"{seconds / 3600:,.0f} h"
