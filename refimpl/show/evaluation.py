"""The table of an evaluation: measures with their standard errors."""

from math import inf, isnan

from refimpl.evaluation.evaluate import Evaluation
from refimpl.show.header import counted, model_facts, page
from refimpl.show.table import Table, number

FLOOR = "up to 12 % in docs/explanation/numerics.md"  # of pruning, in the perplexity


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
        notes.append(f"stderr does not include the noise floor of pruning: {FLOOR}")
    return page(facts, Table(columns).lines(), notes)
