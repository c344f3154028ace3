"""The estimate of what scoring will take, for people."""

from refimpl.method.perturbation import Noise
from refimpl.running.memory import MIB
from refimpl.scoring.estimate import Estimate
from refimpl.show.header import counted, wrapped


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
            f"{estimate.passes:,.0f} block passes",
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
