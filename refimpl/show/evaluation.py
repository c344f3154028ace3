"""The table of an evaluation: perplexity and accuracies, each with its standard error."""

from math import isnan

from refimpl.evaluation.evaluate import Evaluation
from refimpl.show.header import counted, run_facts, wrapped
from refimpl.show.table import aligned


def evaluation_table(found: Evaluation) -> str:
    """What a model is worth, and how that was found.

    Args:
        found: From `refimpl.evaluation.evaluate.evaluate`.

    Returns:
        Text, lines ended by newlines.
    """
    rows = _rows(found)
    table = aligned(
        {
            "measure": [name for name, *_ in rows],
            "value": [_number(value, form) for _, value, _, form, _ in rows],
            "stderr": [_number(error, form) for _, _, error, form, _ in rows],
            "over": [over for *_, over in rows],
        }
    )
    return "\n".join([*_header(found), "", *table, *_footer(found)]) + "\n"


def _rows(found: Evaluation) -> list[tuple[str, float, float, str, str]]:
    """Name, value, standard error, their form, and over what, of every measure."""
    rows = []
    none = float("nan")
    if (text := found.perplexity) is not None:
        windows = counted(len(text.nats), "window")
        rows += [
            ("perplexity", text.value, text.stderr, "#.6g", windows),
            ("nats per token", text.mean_nats, text.nats_stderr, ".5f", windows),
        ]
        if text.bytes is not None:
            size = counted(int(text.bytes.sum()), "byte")
            rows.append(("bits per byte", text.bits_per_byte, none, ".5f", size))
    if (right := found.accuracy) is not None:
        asked = counted(len(right.answers), "question")
        rows += [
            ("acc", right.acc, right.acc_stderr, ".4f", asked),
            ("acc_norm", right.acc_norm, right.acc_norm_stderr, ".4f", asked),
        ]
    return rows


def _header(found: Evaluation) -> list[str]:
    """What was evaluated, on what, and how: each label once and its facts beside it."""
    facts = {"model": [found.model, f"family {found.family}", counted(found.num_blocks, "block")]}
    if found.windows is not None and found.perplexity is not None:
        facts["text" if found.windows.kind == "text" else "ids"] = [
            *found.windows.source.split(", "),
            counted(int(found.perplexity.tokens.sum()), "predicted token"),
            f"sha256 {found.windows.sha256[:12]}",
        ]
    if found.questions is not None and found.choices is not None:
        facts["questions"] = [
            *found.questions.source.split(", "),
            counted(len(found.choices.sequences), "choice"),
            found.choices.start,
            f"sha256 {found.questions.sha256[:12]}",
        ]
    resumed = [f"{found.resumed:,} sequences from an earlier run"] if found.resumed else []
    speed = f"{found.tokens_per_second:,.0f} tokens per second"
    facts["run"] = run_facts(found.run, speed, *resumed)
    return [line for label, known in facts.items() for line in wrapped(label, known)]


def _footer(found: Evaluation) -> list[str]:
    """What a reader must know to read the rows."""
    lines = []
    if any(isnan(error) for name, _, error, *_ in _rows(found) if name != "bits per byte"):
        lines.append("stderr is -: it takes two windows, or two questions, or more")
    if found.choices is not None and found.choices.truncated:
        choices = counted(found.choices.truncated, "choice")
        lines.append(f"{choices} too long for the model, without the start of the question")
    return ["", *lines] if lines else []


def _number(value: float, form: str) -> str:
    """A number as text, a dash where unknown."""
    return "-" if isnan(value) else format(value, form)
