"""The tables of pruned models: what a pruning removed, and the zeros in a file."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

from refimpl.model.config import without_number
from refimpl.pruning.inspection import Inspection, common_pattern
from refimpl.pruning.record import Pruning
from refimpl.running.file_system import MIB
from refimpl.show.header import (
    command_lines,
    joined,
    model_facts,
    run_facts,
    token_facts,
    wrapped,
)
from refimpl.show.table import Table, measured

NEARLY_ALL = 0.95  # sparsity above which a block is named


def pruning_table(pruned: Pruning, out: Path, measured: str | None = None) -> str:
    """How a model was pruned, the table of its allocation if that was measured, and the result."""
    lines = [*wrapped(_facts(pruned)), ""]
    if experts := pruned.without_tokens:
        lines += [f"pruned by magnitude, without calibration tokens: {', '.join(experts)}", ""]
    if measured is not None:
        lines += [*measured.splitlines(), ""]
    if gone := _nearly_removed(pruned):
        lines += [f"above {NEARLY_ALL} sparsity: {', '.join(gone)}", ""]
    return joined([*lines, *_summary(pruned, out)])


def _nearly_removed(pruned: Pruning) -> list[str]:
    """The blocks that lost nearly all of their weights, with their sparsity."""
    shares = {
        block.index: sum(x.pruned for x in block.linears) / sum(x.weights for x in block.linears)
        for block in pruned.blocks
    }
    return [f"block {i} ({share:.4f})" for i, share in shares.items() if share > NEARLY_ALL]


def _summary(pruned: Pruning, out: Path) -> list[str]:
    """Where the model is, the sparsity asked and reached, the perplexity, and what to do next."""
    total, reached = pruned.total_weights, pruned.total_pruned
    facts = {
        "sparsity:": [
            f"{pruned.total_requested / total:.4%} asked",
            f"{reached / total:.4%} reached ({reached:,} of {total:,} weights; "
            f"{pruned.total_zeros:,} zeros in the file)",
        ]
    }
    after = command_lines(f"next:       refimpl eval {out} --text FILE --windows 20")
    if (both := pruned.measured) is not None:
        values = [
            f"{measured(x['perplexity'], x['perplexity_stderr'] or nan)} {when}"
            for when, x in (("before", both.before), ("after", both.after))
        ]
        facts["perplexity:"] = [*values[:1], *f"{values[1]} ({both.after['source']})".split(", ")]
        said = f"refimpl compare {out} OTHER, after pruning in another way"
        after = wrapped({"next:": [said]})
    return [f"written:    {out}", *wrapped(facts), *after]


def _facts(pruned: Pruning) -> dict[str, list[str]]:
    """How the model was pruned, by label."""
    made, files = pruned.allocation, pruned.files
    options = {"damping": pruned.damping, "seed": pruned.seed}
    facts = {
        "model": [
            *model_facts(pruned.model, pruned.family, len(pruned.blocks)),
            f"{pruned.total_weights:,} prunable weights",
        ],
        "pruner": [
            pruned.method,
            *(f"{name} {value:g}" for name, value in options.items() if value is not None),
            f"compat {pruned.compat}",
        ],
        "target": [f"pattern {pruned.pattern}, zeros per group : inputs per group"]
        if pruned.pattern is not None
        else [
            f"sparsity {made['requested_sparsity']:g}",
            f"base {made['base']}",
            *(f"{name} {value}" for name, value in made["base_options"].items()),
            f"correction {made['correct'] or 'none'}",
            *([f"eta {made['eta']:g}"] if made["correct"] and made["eta"] is not None else []),
            *(["strength measured"] if made["correct"] and made["strength"] == "measured" else []),
        ],
    }
    if pruned.calibration is not None:
        facts["calibration"] = token_facts(pruned.calibration)
    if files.left_out:
        facts["not copied"] = list(files.left_out)
    if files.ignored:
        facts["ignored"] = [*files.ignored, "copied"]
    if files.format_added:
        facts["format: pt"] = [f"added to {name}" for name in files.format_added]
    return facts | {"run": run_facts(pruned.run)}


def inspection_table(inspection: Inspection) -> str:
    """What a model's file holds: sizes, and a row per block with the sparsity of every linear."""
    everything = inspection.linears
    rows = [*(list(block.values()) for block in inspection.blocks), everything]
    columns = {
        "block": [*map(str, range(len(inspection.blocks))), "all"],
        "weights": [f"{sum(x.weights for x in row):,}" for row in rows],
        **_shares(inspection.blocks),
        "n:m": [common_pattern(row) or "-" for row in rows],
        "dtype": [" ".join(dict.fromkeys(x.dtype for x in row)) for row in rows],
    }
    total, zeros = sum(x.weights for x in everything), sum(x.zeros for x in everything)
    last = f"zeros {zeros:,} of {total:,} ({zeros / total:.4%})"
    table = Table(columns).lines()
    bad = [f"{name} ({count:,})" for name, count in inspection.non_finite.items()]
    return joined([*_header(inspection), "", *table, "", last, *wrapped({"NaN or Inf": bad})])


def _header(inspection: Inspection) -> list[str]:
    """Facts of the whole model, each label once."""
    num_blocks = len(inspection.blocks)
    size = f"{inspection.parameter_bytes / MIB:,.1f} MiB"
    files = [f"{name}, {size / MIB:,.1f} MiB" for name, size in inspection.files.items()]
    lines = {
        "model": model_facts(inspection.model, inspection.family, num_blocks),
        "parameters": [f"{inspection.parameters:,} in all", size],
        "files" if len(files) > 1 else "file": files,
        "ignored": inspection.ignored,
    }
    if (asked := inspection.requested) is not None:
        what = asked["pattern"] or f"sparsity {asked['sparsity']:g}"
        lines["requested"] = [f"{what} by {asked['method']}", "as pruning.json says"]
    return wrapped(lines)


def _shares(blocks: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The zeros as a fraction of each block and of each kind of linear; all blocks last."""

    def shares(wanted: str | None) -> list[str]:
        rows = [
            [x for name, x in block.items() if wanted in (None, without_number(name))]
            for block in blocks
        ]
        rows.append([linear for row in rows for linear in row])
        return [
            f"{sum(x.zeros for x in row) / sum(x.weights for x in row):.4f}" if row else "-"
            for row in rows
        ]

    kinds = dict.fromkeys(without_number(name) for block in blocks for name in block)
    return {"sparsity": shares(None), **{kind: shares(kind) for kind in kinds}}
