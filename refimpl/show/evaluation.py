"""The table of an evaluation: measures with their standard errors; and continuations of a text."""

from collections.abc import Iterable
from math import inf, isnan
from textwrap import wrap

from refimpl.errors import printable
from refimpl.evaluation.evaluate import Evaluation
from refimpl.evaluation.generation import Continuation
from refimpl.evaluation.measures import Questions
from refimpl.show.header import counted, joined, model_facts, run_facts, terminal_width, wrapped
from refimpl.show.table import Table, number
from refimpl.tokens import Windows

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
    rows = []
    none = float("nan")
    if (text := evaluation.perplexity) is not None:
        windows = counted(len(text.nats), "window")
        rows += [
            ("perplexity", text.value, text.stderr, "#.6g", windows),
            ("nats per token", text.mean_nats, text.nats_stderr, ".5f", windows),
        ]
        if text.bytes is not None:
            size = counted(int(text.bytes.sum()), "byte")
            rows.append(("bits per byte", text.bits_per_byte, none, ".5f", size))
    if (right := evaluation.accuracy) is not None:
        asked = counted(len(right.answers), "question")
        rows += [
            ("acc", right.acc, right.acc_stderr, ".4f", asked),
            ("acc_norm", right.acc_norm, right.acc_norm_stderr, ".4f", asked),
        ]
    return rows


def _header(evaluation: Evaluation) -> list[str]:
    """What was evaluated, on what, and how."""
    facts = {"model": model_facts(evaluation.model, evaluation.family, evaluation.num_blocks)}
    windows, questions, choices = evaluation.windows, evaluation.questions, evaluation.choices
    if windows is not None and evaluation.perplexity is not None:
        predicted = counted(int(evaluation.perplexity.tokens.sum()), "predicted token")
        facts["text" if windows.kind == "text" else "ids"] = _input(windows, predicted)
    if questions is not None and choices is not None:
        asked = counted(len(questions.questions), "question")
        count = counted(len(choices.sequences), "choice")
        facts["questions"] = _input(questions, asked, count, choices.start)
    work = [f"{evaluation.tokens_per_second:,.0f} tokens per second"]
    if evaluation.resumed:
        work.append(f"{evaluation.resumed:,} sequences from an earlier run")
    facts["run"] = run_facts(evaluation.run, *work)
    return wrapped(facts)


def _input(source: Windows | Questions, *facts: str) -> list[str]:
    return [*source.source.split(", "), *facts, f"sha256 {source.sha256[:12]}"]


def _footer(evaluation: Evaluation) -> list[str]:
    """Notes that explain the rows."""
    lines = []
    if any(isnan(error) for name, _, error, *_ in _rows(evaluation) if name != "bits per byte"):
        lines.append("stderr is -: it takes two windows, or two questions, or more")
    if evaluation.perplexity is not None and evaluation.perplexity.value == inf:
        lines.append("the perplexity exceeds float64; the nats per token are its logarithm")
    if evaluation.perplexity is not None and evaluation.pruning is not None:
        lines.append(f"stderr does not include the noise floor of pruning: {FLOOR}")
    if evaluation.choices is not None and evaluation.choices.truncated:
        choices = counted(evaluation.choices.truncated, "choice")
        lines.append(f"{choices} too long for the model, without the start of the question")
    return ["", *lines] if lines else []


def continuations_text(names: Iterable[str], found: Iterable[Continuation]) -> str:
    """Continuations below the names of their models; a line break of the text is one here."""
    lines = list[str]()
    for name, continuation in zip(names, found, strict=True):
        paragraphs = [printable(line) for line in continuation.text.split("\n")]
        pieces = [piece for x in paragraphs for piece in wrap(x, terminal_width() - 2) or [""]]
        lines += ["", f"{name}:", *(f"  {piece}".rstrip() for piece in pieces)]
    return joined(lines[1:])
