"""The table of an evaluation: measures with their standard errors."""

from math import inf, isnan

from refimpl.evaluation.evaluate import Evaluation
from refimpl.show.header import counted, joined, model_facts, run_facts, wrapped
from refimpl.show.table import Table, number

FLOOR = "up to 12 % in docs/explanation/numerics.md"  # of pruning, in the perplexity


def evaluation_table(evaluation: Evaluation) -> str:
    """The measures of a model's quality, and how they were computed."""
    rows = _rows(evaluation)
    table = Table(
        {
            "measure": [name for name, *_ in rows],
            "value": [number(value, form) for _, value, _, form, _ in rows],
            "stderr": [number(error, form) for _, _, error, form, _ in rows],
            "over": [over for *_, over in rows],
        }
    ).lines()
    return joined([*_header(evaluation), "", *table, *_footer(evaluation)])


def _rows(evaluation: Evaluation) -> list[tuple[str, float, float, str, str]]:
    """Of every measure its name, value, standard error, number format, and what it is over."""
    text = evaluation.perplexity
    windows = counted(len(text.nats), "window")
    rows = [
        ("perplexity", text.value, text.stderr, "#.6g", windows),
        ("nats per token", text.mean_nats, text.nats_stderr, ".5f", windows),
    ]
    if text.bytes is not None:
        size = counted(int(text.bytes.sum()), "byte")
        rows.append(("bits per byte", text.bits_per_byte, float("nan"), ".5f", size))
    return rows


def _header(evaluation: Evaluation) -> list[str]:
    """What was evaluated, on what, and how."""
    windows, tokens = evaluation.windows, int(evaluation.perplexity.tokens.sum())
    speed = f"{tokens / max(evaluation.run.seconds, 1e-9):,.0f} tokens per second"
    facts = {
        "model": model_facts(evaluation.model, evaluation.family, evaluation.num_blocks),
        "text" if windows.kind == "text" else "ids": [
            *windows.source.split(", "),
            counted(tokens, "predicted token"),
            f"sha256 {windows.sha256[:12]}",
        ],
        "run": run_facts(evaluation.run, speed),
    }
    return wrapped(facts)


def _footer(evaluation: Evaluation) -> list[str]:
    """Notes that explain the rows."""
    lines = []
    if isnan(evaluation.perplexity.nats_stderr):
        lines.append("stderr is -: it takes two windows or more")
    if evaluation.perplexity.value == inf:
        lines.append("the perplexity exceeds float64; the nats per token are its logarithm")
    if evaluation.pruning is not None:
        lines.append(f"stderr does not include the noise floor of pruning: {FLOOR}")
    return ["", *lines] if lines else []
