"""`eval.json`: the quality of a model, window by window and question by question."""

from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from refimpl.evaluation.choices import Accuracy, Questions
from refimpl.evaluation.encoding import Choices
from refimpl.evaluation.evaluate import Evaluation
from refimpl.evaluation.perplexity import Perplexity
from refimpl.loading.files.documents import Count, Document, Size, filled, plain
from refimpl.pruning.record import PruningFacts
from refimpl.running.provenance import Run
from refimpl.tokens import Windows

FORMAT: Literal[1] = 1
Unknown = float | None


class WindowResult(Document, frozen=True, kw_only=True):
    """A window: predicted tokens, their summed -ln p, bytes covered."""

    tokens: Count
    nats: float
    bytes: int | None


class TextResult(Document, frozen=True, kw_only=True):
    """Perplexity, and the sums of every window; without them in the record of a pruning."""

    source: str
    kind: str
    bos: int | None
    sha256: str
    window: Count
    num_windows: Count
    predicted_tokens: Count
    bytes: int | None
    perplexity: Unknown
    perplexity_stderr: Unknown
    nats_per_token: float
    nats_per_token_stderr: Unknown
    bits_per_byte: Unknown
    windows: tuple[WindowResult, ...] = ()


class QuestionResult(Document, frozen=True, kw_only=True):
    """A question: the right choice, those picked by the two rules, and the choices' ln p."""

    answer: Count
    picked: Count
    picked_norm: Count
    log_likelihoods: list[float]


class ChoicesResult(Document, frozen=True, kw_only=True):
    """Accuracies, and the log likelihoods of every question."""

    source: str
    sha256: str
    ids_sha256: str
    start: str
    num_questions: Count
    num_choices: Count
    truncated_choices: Count
    acc: Unknown
    acc_stderr: Unknown
    acc_norm: Unknown
    acc_norm_stderr: Unknown
    questions: tuple[QuestionResult, ...]


@dataclass(frozen=True)
class EvaluationRun(Run):
    """The run of an evaluation: sequences of an earlier run, tokens read, and those per second."""

    resumed_sequences: int = 0
    tokens: int = 0
    tokens_per_second: float = 0.0


class EvaluationDocument(Document, frozen=True, kw_only=True):
    """What `refimpl eval -o` writes; an older version wrote no digest of the model."""

    format: Literal[1]
    model: str
    family: str
    num_blocks: Size
    model_sha256: str | None = None
    dtype: str
    pruning: PruningFacts | None
    text: TextResult | None = None
    choices: ChoicesResult | None = None
    run: EvaluationRun


def evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON: unknown numbers are null."""
    windows, perplexity, run = evaluation.windows, evaluation.perplexity, evaluation.run
    questions, accuracy, choices = evaluation.questions, evaluation.accuracy, evaluation.choices
    text = asked = None
    if windows is not None and perplexity is not None:
        text = _text(windows, perplexity)
    if questions is not None and accuracy is not None and choices is not None:
        asked = _choices(questions, accuracy, choices)
    run = filled(EvaluationRun, run, evaluation, resumed_sequences=evaluation.resumed)
    others = {"format": FORMAT, "dtype": run.dtype, "text": text, "choices": asked, "run": run}
    document: dict[str, Any] = plain(filled(EvaluationDocument, evaluation, **others))
    return document


def _text(windows: Windows, result: Perplexity) -> TextResult:
    """Perplexity, and the sums of every window."""
    covered = [None] * len(result.nats) if result.bytes is None else result.bytes
    rows = zip(result.tokens, result.nats, covered, strict=True)
    return filled(
        TextResult,
        windows,
        num_windows=len(windows.ids),
        predicted_tokens=result.tokens.sum(),
        bytes=None if result.bytes is None else result.bytes.sum(),
        perplexity=_or_null(result.value),
        perplexity_stderr=_or_null(result.stderr),
        nats_per_token=result.mean_nats,
        nats_per_token_stderr=result.nats_stderr,
        bits_per_byte=result.bits_per_byte,
        windows=tuple(WindowResult(tokens=n, nats=x, bytes=size) for n, x, size in rows),
    )


def _choices(questions: Questions, result: Accuracy, choices: Choices) -> ChoicesResult:
    """Accuracies, and the log likelihoods of every question."""
    names = ("answer", "picked", "picked_norm", "log_likelihoods")
    columns = (result.answers, result.picked, result.picked_norm, result.log_likelihoods)
    return filled(
        ChoicesResult,
        questions,
        choices,
        result,
        ids_sha256=choices.sha256,
        num_questions=len(questions.questions),
        num_choices=len(choices.sequences),
        truncated_choices=choices.truncated,
        questions=tuple(
            QuestionResult(**dict(zip(names, row, strict=True)))
            for row in zip(*columns, strict=True)
        ),
    )


def _or_null(value: float) -> float | None:
    """The number, or None for one that JSON does not have."""
    return value if isfinite(value) else None
