"""The estimate of what scoring will take, for people and as JSON."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from refimpl.loading.files.documents import plain
from refimpl.running.memory import MIB
from refimpl.scoring.estimate import Estimate
from refimpl.show.header import counted, wrapped


def estimate_text(estimate: Estimate) -> str:
    """An estimate in words."""
    plan, memory, gaussian = estimate.plan, estimate.memory, estimate.plan.kind == "gaussian"
    noise = [counted(len(plan.eta), "eta"), counted(plan.draws, "draw")] if gaussian else []
    perturbed = "all" if plan.subset is None else f"{plan.subset} of {estimate.num_blocks}"
    threads = counted(estimate.threads, "worker" if estimate.elsewhere else "thread")
    here = " here" if estimate.elsewhere else ""
    facts = {
        "model": [estimate.model, counted(estimate.num_blocks, "block")],
        "tokens": [f"{estimate.tokens.samples} x {estimate.tokens.seq_len}"],
        "perturbed": [plan.kind, *noise, f"{perturbed} blocks", counted(estimate.states, "state")],
        "passes": [
            f"{estimate.passes:,.0f} block passes",
            f"states in {counted(estimate.units, 'group')}",
        ],
        "time": [
            f"about {duration(estimate.seconds.total)}",
            *_parts(asdict(estimate.seconds), duration),
        ],
        "memory": [
            f"about {memory.peak / MIB:,.0f} MiB resident{here}",
            *_parts(asdict(memory), lambda size: f"{size / MIB:,.3g}"),
        ],
        "measured": [
            f"{counted(estimate.blocks, 'block')} on {estimate.tokens.seq_len} tokens",
            f"for {duration(estimate.measuring)}",
            threads,
            estimate.dtype,
        ],
    }
    return "\n".join(wrapped(facts)) + "\n"


def estimate_document(estimate: Estimate) -> dict[str, Any]:
    """An estimate as one JSON document."""
    content: dict[str, Any] = plain(estimate)
    content["memory"]["peak"] = estimate.memory.peak
    content["seconds"]["total"] = estimate.seconds.total
    return content


def _parts(amounts: Mapping[str, float], text: Callable[[float], str]) -> list[str]:
    """Each part and its amount, without those that are 0."""
    return [f"{name} {text(amount)}" for name, amount in amounts.items() if amount]


def duration(seconds: float) -> str:
    """A time in seconds, in the unit that suits it."""
    if seconds < 180:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 60 * 180 else f"{seconds / 3600:,.0f} h"
