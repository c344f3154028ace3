"""The tables of models: what a pruning removed, the zeros in a file, and the quality."""

from collections.abc import Sequence
from math import inf, isnan
from pathlib import Path

from refimpl.evaluation.evaluate import Evaluation
from refimpl.model.config import without_number
from refimpl.pruning.record import Inspection, LinearZeros, Pruning
from refimpl.running.file_system import MIB
from refimpl.show.table import (
    Table,
    counted,
    model_facts,
    number,
    page_text,
    token_facts,
    wrapped,
)

NEARLY_ALL = 0.95  # sparsity above which a block is named


def pruning_table(pruned: Pruning, out: Path, allocation: Sequence[str] = ()) -> str:
    """How a model was pruned, the table of its allocation if that was measured, and the result."""
    gone = []
    for block in pruned.blocks:
        share = sum(x.pruned for x in block.linears) / sum(x.weights for x in block.linears)
        if share > NEARLY_ALL:
            gone.append(f"block {block.index} ({share:.4f})")
    notes = [f"above {NEARLY_ALL} sparsity: {', '.join(gone)}"] if gone else []
    total, reached = pruned.total_weights, pruned.total_pruned
    sparsity = [
        f"{pruned.total_requested / total:.4%} asked",
        f"{reached / total:.4%} reached ({reached:,} of {total:,} weights; "
        f"{pruned.total_zeros:,} zeros in the file)",
    ]
    after = f"next:       refimpl eval {out} --text FILE --windows 20"
    below = [f"written:    {out}", *wrapped({"sparsity:": sparsity}), after]
    return page_text(_facts(pruned), allocation, notes, below)


def _facts(pruned: Pruning) -> dict[str, list[str]]:
    """How the model was pruned, by label."""
    made, weights = pruned.allocation, f"{pruned.total_weights:,} prunable weights"
    facts = {
        "model": [*model_facts(pruned.model, pruned.family, len(pruned.blocks)), weights],
        "pruner": [pruned.method, *["refit"] * pruned.refit, f"compat {pruned.compat}"],
        "allocation": [f"pattern {pruned.pattern}, zeros per group : inputs per group"],
    }
    if pruned.pattern is None:
        facts["allocation"] = [
            f"sparsity {made['requested_sparsity']:g}",
            f"base {made['base']}",
            *(f"{name} {value}" for name, value in made["base_options"].items()),
            f"correction {made['correct'] or 'none'}",
        ]
    if pruned.calibration is not None:
        facts["calibration"] = token_facts(pruned.calibration)
    if experts := pruned.without_tokens:
        facts["no tokens"] = [*experts, "pruned by magnitude"]
    return facts


def inspection_table(inspection: Inspection) -> str:
    """What a model's file holds: sizes, and a row per block with the sparsity of every linear."""
    everything = inspection.linears
    rows = [[*block.items()] for block in inspection.blocks]
    rows.append([linear for row in rows for linear in row])
    kinds = dict.fromkeys(without_number(name) for name, _ in rows[-1])
    columns = {
        "block": [*map(str, range(len(inspection.blocks))), "all"],
        "weights": [f"{sum(x.weights for _, x in row):,}" for row in rows],
        "sparsity": [_share([x for _, x in row]) for row in rows],
        **{
            kind: [_share([x for name, x in row if without_number(name) == kind]) for row in rows]
            for kind in kinds
        },
        "dtype": [" ".join(dict.fromkeys(x.dtype for _, x in row)) for row in rows],
    }
    total, zeros = sum(x.weights for x in everything), sum(x.zeros for x in everything)
    last = f"zeros {zeros:,} of {total:,} ({zeros / total:.4%})"
    bad = [f"{name} ({count:,})" for name, count in inspection.non_finite.items()]
    below = [last, *wrapped({"NaN or Inf": bad})]
    return page_text(_header(inspection), Table(columns).lines(), below)


def _header(inspection: Inspection) -> dict[str, Sequence[str]]:
    """Facts of the whole model, each label once."""
    size = f"{inspection.parameter_bytes / MIB:,.1f} MiB"
    files = [f"{name}, {size / MIB:,.1f} MiB" for name, size in inspection.files.items()]
    facts: dict[str, Sequence[str]] = {
        "model": model_facts(inspection.model, inspection.family, len(inspection.blocks)),
        "parameters": [f"{inspection.parameters:,} in all", size],
        "files" if len(files) > 1 else "file": files,
        "ignored": inspection.ignored,
    }
    if (asked := inspection.requested) is not None:
        what = asked["pattern"] or f"sparsity {asked['sparsity']:g}"
        facts["requested"] = [f"{what} by {asked['method']}", "as pruning.json says"]
    return facts


def _share(linears: Sequence[LinearZeros]) -> str:
    """The zeros of some linears as a fraction of their weights."""
    weights = sum(x.weights for x in linears)
    return f"{sum(x.zeros for x in linears) / weights:.4f}" if weights else "-"


NOISE_FLOOR = "up to 12 % in docs/explanation/numerics.md"  # of pruning, in the perplexity


def evaluation_table(evaluation: Evaluation) -> str:
    """The measures of a model's quality, and how they were computed."""
    text, count = evaluation.perplexity, int(evaluation.perplexity.tokens.sum())
    run = evaluation.run
    speed = f"{count / max(run.seconds, 1e-9):,.0f} tokens per second"
    source = [*evaluation.windows.source.split(", "), counted(count, "predicted token")]
    facts = {
        "model": model_facts(evaluation.model, evaluation.family, evaluation.num_blocks),
        "text" if evaluation.windows.kind == "text" else "ids": source,
        "run": [f"{run.seconds:.1f} s", speed, run.dtype],
    }
    columns = {
        "measure": ["perplexity", "nats per token"],
        "value": [number(text.value, "#.6g"), number(text.mean_nats, ".5f")],
        "stderr": [number(text.stderr, "#.6g"), number(text.nats_stderr, ".5f")],
        "over": [counted(len(text.nats), "window")] * 2,
    }
    if text.bytes is not None:
        bits, size = number(text.bits_per_byte, ".5f"), counted(int(text.bytes.sum()), "byte")
        for cells, cell in zip(columns.values(), ("bits per byte", bits, "-", size), strict=True):
            cells.append(cell)
    notes = []
    if isnan(text.nats_stderr):
        notes.append("stderr is -: it takes two windows or more")
    if text.value == inf:
        notes.append("the perplexity exceeds float64; the nats per token are its logarithm")
    if evaluation.pruning is not None:
        notes.append(f"stderr does not include the noise floor of pruning: {NOISE_FLOOR}")
    return page_text(facts, Table(columns).lines(), notes)
