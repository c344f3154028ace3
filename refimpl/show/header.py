"""The header of the table: what was measured, on what, and how."""

from collections.abc import Mapping
from textwrap import wrap

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.scores import Scores
from refimpl.method.correction import MAX_CORRECTION, STRENGTH
from refimpl.running.provenance import Run

WIDTH, LABEL = 100, 12  # columns of a line, and of the label before its facts
MIB = 1 << 20


def header(scores: Scores, allocations: tuple[Allocation, ...]) -> list[str]:
    """What was measured, on what, and how.

    Args:
        scores: What was found.
        allocations: One per eta.

    Returns:
        Lines, each label once and its facts beside it.
    """
    tokens, run, request = scores.tokens, scores.run, allocations[0].request
    facts = {
        "model": [
            scores.model,
            f"family {scores.family}",
            counted(scores.num_blocks, "block"),
            f"{allocations[0].total_weights:,} prunable weights",
        ],
        "tokens": [
            f"{tokens.samples} x {tokens.seq_len}",
            *tokens.source.split(", "),
            f"sha256 {tokens.sha256[:12]}",
        ],
        "perturbed": _perturbed(scores),
        **_budget(scores),
        "base": [
            *_base(request.base, request.options, request.sparsity),
            f"limits {request.lo:g} to {request.hi:g}",
            f"compat {request.compat}",
        ],
        "correction": _correction(allocations),
        "run": run_facts(run),
    }
    return [line for label, known in facts.items() for line in wrapped(label, known)]


def run_facts(run: Run, *more: str) -> list[str]:
    """How a run went.

    Args:
        run: Its facts.
        more: What else is to be said, after the time.

    Returns:
        A text per fact.
    """
    peak = "unknown" if run.peak_memory is None else f"{run.peak_memory / MIB:,.0f} MiB"
    return [
        f"{run.seconds:.1f} s",
        *more,
        f"peak memory {peak} (resident, mapped pages included)",
        f"{run.memory / MIB:,.6g} MiB for states",
        counted(run.threads, "thread"),
        run.dtype,
        *([] if run.runtime == "numpy" else [f"experiment by {run.runtime} on {run.device}"]),
        *(f"{name} {version}" for name, version in run.versions.items()),
    ]


def _perturbed(scores: Scores) -> list[str]:
    """How states were pushed, and how the push was followed."""
    plan, at = scores.plan, scores.pruned_at
    if at is not None:
        push = ["pruning by Wanda as base", *_base(at.base, at.options, at.sparsity)]
        push = [" ".join(push[:2]), *push[2:]]
    else:
        push = [
            f"{plan.kind} noise",
            "eta " + ", ".join(f"{eta:g}" for eta in plan.eta),
            f"noise scale {plan.noise_scale}",
            f"noise shape {plan.noise_shape}",
            counted(plan.draws, "draw"),
            f"seed {plan.seed}",
        ]
    if plan.subset is not None:
        each = "per sample" if at is not None else "per sample and draw"
        push.append(f"{plan.subset} of {counted(scores.num_blocks, 'block')} {each}")
    return [*push, f"norm {plan.norm}", f"sink {plan.sink}"]


def _budget(scores: Scores) -> dict[str, list[str]]:
    """What was chosen to fit into a time, if there was one."""
    if scores.budget_minutes is None:
        return {}
    subset, blocks = scores.plan.subset, counted(scores.num_blocks, "block")
    chosen = [
        f"{counted(scores.tokens.samples, 'sample')} chosen",
        *([counted(scores.plan.draws, "draw")] if scores.pruned_at is None else []),
        f"all {blocks}" if subset is None else f"{subset} of {blocks}",
    ]
    return {"budget": [f"{scores.budget_minutes:g} min", *chosen]}


def _base(base: str, options: Mapping[str, float | str], sparsity: float) -> list[str]:
    """A base allocation, its options, and the target."""
    words = [f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in options.items()]
    return [base, *words, f"sparsity {sparsity:g}"]


def _correction(allocations: tuple[Allocation, ...]) -> list[str]:
    """The correction, and how many blocks it cannot tell apart, per eta."""
    request = allocations[0].request
    if request.correct is None:
        return ["none"]
    at_clip = ", ".join(str(int(allocation.clipped.sum())) for allocation in allocations)
    provisional = (request.strength, request.max_correction) == (STRENGTH, MAX_CORRECTION)
    return [
        request.correct,
        f"strength {request.strength:g}",
        f"at most {request.max_correction:g}",
        f"scale {request.correction_scale}",
        *(["provisional defaults"] if provisional else []),
        f"{at_clip} of {counted(len(allocations[0].clipped), 'block')} at the clip (|u| = log 3)",
    ]


def counted(number: int, thing: str) -> str:
    """A number of things: "1 block", "2 blocks"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def wrapped(label: str, facts: list[str]) -> list[str]:
    """A label and its facts on as many lines as needed, broken between facts."""
    glued = ", ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts)
    lines = wrap(glued, WIDTH - LABEL, break_long_words=False, break_on_hyphens=False)
    return [
        f"{label if i == 0 else '':<{LABEL}}{line}".replace("\N{NO-BREAK SPACE}", " ")
        for i, line in enumerate(lines)
    ]
