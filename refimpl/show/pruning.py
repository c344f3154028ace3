"""The table of a pruning: how many weights each block and linear was to lose, and lost."""

from pathlib import Path

from refimpl.pruning.prune import Pruning
from refimpl.pruning.pruned_files import Counts
from refimpl.show.header import model_facts, run_facts, token_facts, wrapped
from refimpl.show.table import aligned


def pruning_table(pruned: Pruning, out: Path) -> str:
    """How a model was pruned, and a row per block: asked, pruned, and the zeros in the file."""
    counts, asked = pruned.written.counts, pruned.targets.linear_pruned
    blocks = [list(block.values()) for block in counts]
    rows = [*blocks, [linear for block in blocks for linear in block]]
    columns = {
        "block": [*map(str, range(len(counts))), "all"],
        "weights": [f"{sum(x.weights for x in row):,}" for row in rows],
        "asked": [f"{n:,}" for n in (*asked.sum(axis=1), asked.sum())],
        "pruned": [f"{sum(x.pruned for x in row):,}" for row in rows],
        "kept zeros": [f"{sum(x.kept_zeros for x in row):,}" for row in rows],
        "zeros": [f"{sum(x.zeros for x in row):,}" for row in rows],
        "sparsity": [_sparsity(row) for row in rows],
    }
    for name in counts[0]:
        linears = [block[name] for block in counts]
        columns[name] = [_sparsity(row) for row in (*([linear] for linear in linears), linears)]
    notes = [
        "asked: weights to prune; pruned: those that were, now +0.0; kept zeros: weights that stay",
        "and are zero; zeros, counted in the file, are both together; then the fraction pruned of",
        "the block and of each linear.",
        f"written: {out}",
    ]
    return "\n".join([*wrapped(_facts(pruned)), "", *aligned(columns), "", *notes]) + "\n"


def _sparsity(linears: list[Counts]) -> str:
    """The fraction pruned of some linears together."""
    return f"{sum(x.pruned for x in linears) / sum(x.weights for x in linears):.4f}"


def _facts(pruned: Pruning) -> dict[str, list[str]]:
    """How the model was pruned, by label."""
    targets, pruner, tokens = pruned.targets, pruned.pruner, pruned.tokens
    made = targets.made
    facts = {
        "model": [
            *model_facts(pruned.model, pruned.family, len(pruned.written.counts)),
            f"{pruned.total_weights:,} prunable weights",
        ],
        "method": [
            pruner.method,
            *([f"damping {pruner.damping:g}"] if pruner.method == "sparsegpt" else []),
            *([f"seed {pruner.seed}"] if pruner.method == "random" else []),
            f"compat {targets.compat}",
        ],
        "target": [f"pattern {targets.pattern}, zeros per group : inputs per group"]
        if targets.pattern is not None
        else [
            f"sparsity {made['requested_sparsity']:g}",
            f"base {made['base']}",
            *(f"{name} {value}" for name, value in made["base_options"].items()),
            f"correction {made['correct'] or 'none'}",
        ],
    }
    if tokens is not None:
        facts["calibration"] = token_facts(tokens)
    if pruned.written.left_out:
        facts["not copied"] = list(pruned.written.left_out)
    if pruned.written.format_added:
        facts["format: pt"] = [f"added to {name}" for name in pruned.written.format_added]
    facts["run"] = run_facts(pruned.run)
    return facts
