"""The table of a pruning: what each block and linear was asked to lose, and what it lost."""

from pathlib import Path

from refimpl.pruning.prune import Pruning
from refimpl.show.header import counted, run_facts, wrapped
from refimpl.show.table import aligned


def pruning_table(pruned: Pruning, out: Path) -> str:
    """How a model was pruned, and a row per block: asked, pruned, and the zeros in the file.

    Args:
        pruned: From `refimpl.pruning.prune.prune`.
        out: The new folder.

    Returns:
        Text, lines ended by newlines.
    """
    counts, asked = pruned.written.counts, pruned.targets.linear_pruned
    rows = [list(block.values()) for block in counts]
    everything = [found for row in rows for found in row]
    rows.append(everything)
    names = list(counts[0])
    columns = {
        "block": [*map(str, range(len(counts))), "all"],
        "weights": [f"{sum(x.weights for x in row):,}" for row in rows],
        "asked": [f"{n:,}" for n in (*asked.sum(axis=1), asked.sum())],
        "pruned": [f"{sum(x.pruned for x in row):,}" for row in rows],
        "kept zeros": [f"{sum(x.kept_zeros for x in row):,}" for row in rows],
        "zeros": [f"{sum(x.zeros for x in row):,}" for row in rows],
        "sparsity": [
            f"{sum(x.pruned for x in row) / sum(x.weights for x in row):.4f}" for row in rows
        ],
        **{
            name: [f"{block[name].pruned / block[name].weights:.4f}" for block in counts]
            + [f"{_share(pruned, name):.4f}"]
            for name in names
        },
    }
    lines = [line for label, known in _facts(pruned).items() for line in wrapped(label, known)]
    notes = [
        "asked: weights to prune; pruned: those that were, now +0.0; kept zeros: weights that stay",
        "and are zero; zeros, counted in the file, are both together; then the fraction pruned of",
        "the block and of each linear.",
        f"written: {out}",
    ]
    return "\n".join([*lines, "", *aligned(columns), "", *notes]) + "\n"


def _share(pruned: Pruning, name: str) -> float:
    """Fraction pruned of one linear over all blocks."""
    found = [block[name] for block in pruned.written.counts]
    return sum(x.pruned for x in found) / sum(x.weights for x in found)


def _facts(pruned: Pruning) -> dict[str, list[str]]:
    """Label to facts."""
    targets, pruner, tokens = pruned.targets, pruned.pruner, pruned.tokens
    made = targets.made
    facts = {
        "model": [
            pruned.model,
            f"family {pruned.family}",
            counted(len(pruned.written.counts), "block"),
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
        facts["calibration"] = [
            f"{tokens.samples} x {tokens.seq_len}",
            *tokens.source.split(", "),
            f"sha256 {tokens.sha256[:12]}",
        ]
    if pruned.written.left_out:
        facts["not copied"] = list(pruned.written.left_out)
    if pruned.written.format_added:
        facts["format: pt"] = [f"added to {name}" for name in pruned.written.format_added]
    facts["run"] = run_facts(pruned.run)
    return facts
