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
    allocation_facts,
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
    made, total, reached = pruned.allocation, pruned.total_weights, pruned.total_pruned
    model = model_facts(pruned.model, pruned.family, len(pruned.blocks))
    facts = {
        "model": [*model, f"{total:,} prunable weights"],
        "pruner": [pruned.method, *["refit"] * pruned.refit, f"compat {pruned.compat}"],
        "allocation": [f"pattern {pruned.pattern}, zeros per group : inputs per group"],
        "calibration": token_facts(pruned.calibration) if pruned.calibration else [],
        "no tokens": [*pruned.without_tokens, "pruned by magnitude"]
        * bool(pruned.without_tokens),
    }
    if pruned.pattern is None:
        keys = ("requested_sparsity", "base", "base_options", "correct")
        facts["allocation"] = allocation_facts(*(made[key] for key in keys))
    gone = []
    for block in pruned.blocks:
        share = sum(x.pruned for x in block.linears) / sum(
            x.weights for x in block.linears
        )
        if share > NEARLY_ALL:
            gone.append(f"block {block.index} ({share:.4f})")
    notes = [f"above {NEARLY_ALL} sparsity: {', '.join(gone)}"] if gone else []
    sparsity = [
        f"{pruned.total_requested / total:.4%} asked",
        f"{reached / total:.4%} reached ({reached:,} of {total:,} weights; "
        f"{pruned.total_zeros:,} zeros in the file)",
    ]
    below = [f"written:    {out}", *wrapped({"sparsity:": sparsity})]
    below.append(f"next:       refimpl eval {out} --text FILE --windows 20")
    return page_text(facts, allocation, notes, below)


def inspection_table(inspection: Inspection) -> str:
    """What a model's file holds: sizes, and a row per block with the sparsity of every linear."""
    size = f"{inspection.parameter_bytes / MIB:,.1f} MiB"
    files = [
        f"{name}, {size / MIB:,.1f} MiB" for name, size in inspection.files.items()
    ]
    facts: dict[str, Sequence[str]] = {
        "model": model_facts(
            inspection.model, inspection.family, len(inspection.blocks)
        ),
        "parameters": [f"{inspection.parameters:,} in all", size],
        "files" if len(files) > 1 else "file": files,
        "ignored": inspection.ignored,
    }
    if (asked := inspection.requested) is not None:
        what = asked["pattern"] or f"sparsity {asked['sparsity']:g}"
        facts["requested"] = [f"{what} by {asked['method']}", "as pruning.json says"]
    rows = [[*block.items()] for block in inspection.blocks]
    rows.append([linear for row in rows for linear in row])
    kinds = dict.fromkeys(without_number(name) for name, _ in rows[-1])
    columns = {
        "block": [*map(str, range(len(inspection.blocks))), "all"],
        "weights": [f"{LinearZeros.of([x for _, x in row]).weights:,}" for row in rows],
        "sparsity": [_share([x for _, x in row]) for row in rows],
        **{
            kind: [
                _share([x for name, x in row if without_number(name) == kind])
                for row in rows
            ]
            for kind in kinds
        },
        "dtype": [LinearZeros.of([x for _, x in row]).dtype for row in rows],
    }
    every = LinearZeros.of(inspection.linears)
    last = f"zeros {every.zeros:,} of {every.weights:,} ({every.sparsity:.4%})"
    bad = [f"{name} ({count:,})" for name, count in inspection.non_finite.items()]
    below = [last, *wrapped({"NaN or Inf": bad})]
    return page_text(facts, Table(columns).lines(), below)


def _share(linears: Sequence[LinearZeros]) -> str:
    """The zeros of some linears as a fraction of their weights."""
    return f"{LinearZeros.of(linears).sparsity:.4f}" if linears else "-"


NOISE_FLOOR = (
    "up to 12 % in docs/explanation/numerics.md"  # of pruning, in the perplexity
)


def evaluation_table(evaluation: Evaluation) -> str:
    """The measures of a model's quality, and how they were computed."""
    text, count = evaluation.perplexity, int(evaluation.perplexity.tokens.sum())
    run = evaluation.run
    speed = f"{count / max(run.seconds, 1e-9):,.0f} tokens per second"
    source = [*evaluation.windows.source.split(", "), counted(count, "predicted token")]
    facts = {
        "model": model_facts(
            evaluation.model, evaluation.family, evaluation.num_blocks
        ),
        "text" if evaluation.windows.kind == "text" else "ids": source,
        "run": [f"{run.seconds:.1f} s", speed, run.dtype],
    }
    windows, rows = (
        counted(len(text.nats), "window"),
        [("measure", "value", "stderr", "over")],
    )
    for name, value, error, form in (
        ("perplexity", text.value, text.stderr, "#.6g"),
        ("nats per token", text.mean_nats, text.nats_stderr, ".5f"),
    ):
        rows.append((name, number(value, form), number(error, form), windows))
    if text.bytes is not None:
        size = counted(int(text.bytes.sum()), "byte")
        rows.append(("bits per byte", number(text.bits_per_byte, ".5f"), "-", size))
    notes = []
    if isnan(text.nats_stderr):
        notes.append("stderr is -: it takes two windows or more")
    if text.value == inf:
        notes.append(
            "the perplexity exceeds float64; the nats per token are its logarithm"
        )
    if evaluation.pruning is not None:
        notes.append(
            f"stderr does not include the noise floor of pruning: {NOISE_FLOOR}"
        )
    table = Table({heading: cells for heading, *cells in zip(*rows, strict=True)})
    return page_text(facts, table.lines(), notes)
