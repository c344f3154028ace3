"""The estimate of what scoring will take, for people and as JSON."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from refimpl.estimation.estimate import Estimate
from refimpl.running.memory import MIB
from refimpl.show.header import counted, wrapped

GIGA = 10**9


def estimate_text(estimate: Estimate, minutes: float | None = None) -> str:
    """An estimate in words, and the time in minutes that it was chosen for."""
    work, plan, memory, pace = estimate.work, estimate.plan, estimate.memory, estimate.pace
    gaussian, dense = plan.kind == "gaussian", int(work.dense.sum())
    noise = [counted(len(plan.eta), "eta"), counted(plan.draws, "draw")] if gaussian else []
    perturbed = "all" if plan.subset is None else f"{plan.subset} of {estimate.num_blocks}"
    budget = [] if minutes is None else [f"{minutes:g} min", "for which this was chosen"]
    parts = {
        "states": memory.states,
        "blocks": memory.blocks,
        "mapped pages of a block": memory.pages,
        "in hand": memory.working,
        "signals": memory.signals,
        "before": memory.before,
    }
    seq_len = estimate.tokens.seq_len
    measured = "block" if pace.blocks == 1 else f"{pace.blocks} blocks"
    threads = counted(estimate.threads, "worker" if estimate.elsewhere else "thread")
    facts = {
        "model": [estimate.model, counted(estimate.num_blocks, "block")],
        "tokens": [f"{estimate.tokens.samples} x {seq_len}"],
        "perturbed": [plan.kind, *noise, f"{perturbed} blocks", counted(work.states, "state")],
        **({"budget": budget} if budget else {}),
        "passes": [
            f"{work.passes:,} block passes",
            *([f"{dense:,} of the dense model"] if dense else []),
            f"{int(work.clean.sum()):,} of clean states",
            f"{int(work.perturbed.sum()):,} of perturbed ones",
            *([f"{work.heads:,} heads"] if work.heads else []),
            f"blocks read {work.loads:,} times",
        ],
        "arithmetic": [
            f"{estimate.arithmetic.total / GIGA:,.4g} GFLOP",
            *_kinds(asdict(estimate.arithmetic), lambda flop: f"{flop / GIGA:,.4g}"),
        ],
        "memory": [
            f"about {memory.peak / MIB:,.0f} MiB resident{' here' if estimate.elsewhere else ''}",
            *_kinds(parts, lambda size: f"{size / MIB:,.3g}"),
            f"at most {memory.allowed / MIB:,.6g} for states (--memory)",
        ],
        "time": [
            f"about {duration(estimate.seconds.total)}",
            *_kinds(asdict(estimate.seconds), duration),
        ],
        "measured": [
            f"the time is an estimate from the first {measured} on {seq_len} tokens",
            f"timed for {duration(pace.measuring)}",
            f"a pass {pace.turn * 1000:,.3g} ms on each of {threads}",
            f"a block read in {pace.load * 1000:,.3g} ms",
            estimate.dtype,
        ],
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


def _kinds(amounts: Mapping[str, float], text: Callable[[float], str]) -> list[str]:
    """Each kind and its amount, without those that are 0."""
    return [f"{name} {text(amount)}" for name, amount in amounts.items() if amount]


def duration(seconds: float) -> str:
    """A time in seconds, in the unit that suits it."""
    if seconds < 180:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 60 * 180 else f"{seconds / 3600:,.0f} h"
