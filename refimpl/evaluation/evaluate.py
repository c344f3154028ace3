"""Perplexity and multiple choice of a model, in batches that can be resumed; `eval.json`."""

import time
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import AtLeastOne, Count
from refimpl.errors import RefimplError
from refimpl.evaluation.encoding import Choices, Sequences, choice_sequences, encoder
from refimpl.evaluation.likelihood import (
    BATCH,
    Batch,
    batches,
    group_likelihoods,
    groups,
    tokens_in_memory,
)
from refimpl.evaluation.measures import Accuracy, Perplexity, Questions
from refimpl.loading.files.documents import Document, filled, plain
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.pruning.record import PruningFacts, recorded_pruning
from refimpl.running.provenance import Run, model_sha256
from refimpl.running.settings import Settings
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick, results
from refimpl.tokens import Windows

GROUP = 16 * BATCH  # tokens: what a kill loses at most, half a minute of a small model


@dataclass(frozen=True)
class Evaluation:
    """A measurement of a model's quality, and how it was made.

    Args:
        model: Its name.
        family: Its family.
        num_blocks: L.
        model_sha256: Of the model that was measured: its configuration and its weights.
        windows: The text, if there was one.
        perplexity: On the windows.
        questions: The questions, if there were any.
        accuracy: On the questions.
        choices: The questions as token ids.
        tokens: Inputs read in this run, padding left out.
        resumed: Sequences (windows, choices) read from finished units of an earlier run.
        run: How the numbers were made.
        pruning: How the model was pruned, by the `pruning.json` beside it; None without one.
    """

    model: str
    family: str
    num_blocks: int
    model_sha256: str
    windows: Windows | None
    perplexity: Perplexity | None
    questions: Questions | None
    accuracy: Accuracy | None
    choices: Choices | None
    tokens: int
    resumed: int
    run: Run
    pruning: PruningFacts | None = None

    @property
    def tokens_per_second(self) -> float:
        """Inputs read per second of this run."""
        return self.tokens / max(self.run.seconds, 1e-9)


def evaluate(
    model: Model,
    windows: Windows | None = None,
    questions: Questions | None = None,
    settings: Settings | None = None,
    **changes: Any,
) -> Evaluation:
    """Perplexity of a model on windows of a text, its accuracy on questions, or both.

    Args:
        model: From `read_model`; its folder holds the tokenizer where there are questions.
        windows: From `text_windows` or `id_windows`.
        questions: From `read_questions`.
        settings: How and where it runs; sums over the vocabulary are float64.
        **changes: Fields of the settings to change, such as `dtype="float64"`.

    Returns:
        The numbers, the same for every executor, memory and number of threads, resumed or not.

    Raises:
        RefimplError: Neither windows nor questions; tokens the model cannot read; NaN or Inf among
            the weights.

    Source: lm-evaluation-harness 0.4 (peer), for the questions.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.tokens import text_windows
        >>> model = read_model("fixtures/llama")
        >>> windows = text_windows("fixtures/text.txt", "fixtures/llama/tokenizer.json", 32)
        >>> evaluation = evaluate(model, windows)
        >>> len(evaluation.perplexity.nats), round(evaluation.perplexity.value)
        (33, 1589)
    """
    if windows is None and questions is None:
        raise RefimplError("nothing to evaluate on", "a text, ids or questions", "use `text=FILE`")
    settings = replace(settings or Settings(), **changes)
    pruning = recorded_pruning(model)
    texts: Sequences = [] if windows is None else [(ids, 1) for ids in windows.ids]
    choices = None if questions is None else choice_sequences(encoder(model), questions)
    laid = _all_batches(model, texts, [] if choices is None else choices.sequences)
    identity = {"text": windows and [windows.window, windows.sha256]}
    with settings.open(model, identity | {"questions": choices and choices.sha256}) as resources:
        workers = resources.at_once
        sums: dict[int, float] = {int(n): x for n, x in resources.earlier.items()}
        left = [batch for batch in laid if not sums.keys() >= set(batch.members)]
        resources.total = sum(batch.cost(model.config) for batch in laid)
        resources.done = resources.total - sum(batch.cost(model.config) for batch in left)
        resumed, started = len(sums), time.perf_counter()
        size = min(
            GROUP, tokens_in_memory(model, laid, resources.memory // workers, resources.dtype)
        )
        if resources.executor is not None:  # at least two work units for every worker
            size = min(size, -(-sum(batch.ids.size for batch in left) // (2 * workers)))
        units = [BatchGroup(tuple(group), resources.dtype) for group in groups(left, size)]
        for new in results(units, model, resources):
            resources.keep({str(n): x for n, x in new.items()})
            sums |= new
        sha256 = model_sha256(model)  # while the files are known to be unchanged
    totals = np.array([sums[n] for n in range(len(sums))])
    perplexity = accuracy = None
    if windows is not None:
        lengths = np.array([len(ids) - 1 for ids in windows.ids])
        covered = None if windows.bytes is None else np.array(windows.bytes)
        perplexity = Perplexity(-totals[: len(texts)], lengths, covered)
    if questions is not None:
        asked = questions.questions
        ends = np.cumsum([len(q.choices) for q in asked])
        sizes = tuple(np.array([len(c) for c in q.choices]) for q in asked)
        sums_of = tuple(np.split(totals[len(texts) :], ends[:-1]))
        accuracy = Accuracy(sums_of, sizes, np.array([q.answer for q in asked]))
    return Evaluation(
        model.name,
        model.config.family,
        model.config.num_blocks,
        sha256,
        windows,
        perplexity,
        questions,
        accuracy,
        choices,
        sum(batch.tokens for batch in left),
        resumed,
        resources.run_since(started),
        pruning,
    )


@dataclass(frozen=True)
class BatchGroup:
    """Batches that pass through the model together: the work unit of an evaluation."""

    batches: tuple[Batch, ...]
    dtype: npt.DTypeLike

    def cost(self, config: Config) -> float:
        """The cost of its batches."""
        return sum(batch.cost(config) for batch in self.batches)

    def run(self, model: Model, workers: Workers, tick: Tick) -> dict[int, float]:
        """The summed log likelihood of each sequence, by its number."""
        likelihoods = group_likelihoods(model, self.batches, workers, self.dtype, tick=tick)
        return {n: float(x.log_probabilities.sum()) for n, x in likelihoods.items()}


def _all_batches(model: Model, texts: Sequences, pairs: Sequences) -> list[Batch]:
    """Batches of windows, then of choices: neither depends on whether the other is there."""
    all_batches: list[Batch] = []
    for first, sequences in ((0, texts), (len(texts), pairs)):
        ids, starts = [ids for ids, _ in sequences], [start for _, start in sequences]
        laid = batches(ids, starts, model.config)
        all_batches += [replace(b, members=tuple(first + n for n in b.members)) for b in laid]
    return all_batches


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
    num_blocks: AtLeastOne
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
