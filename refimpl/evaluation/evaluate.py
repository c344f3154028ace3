"""Perplexity of a model on windows of a text; `eval.json`."""

import time
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any, Literal

import numpy as np

from refimpl.arguments import AtLeastOne, AtLeastZero
from refimpl.evaluation.likelihood import (
    Perplexity,
    batch_groups,
    batches,
    group_likelihoods,
    tokens_in_memory,
)
from refimpl.loading.files.documents import Document, filled, plain
from refimpl.loading.samples import Windows
from refimpl.model.model import Model
from refimpl.pruning.record import PruningFacts, recorded_pruning
from refimpl.running.provenance import Run, model_sha256
from refimpl.running.settings import Settings


@dataclass(frozen=True)
class Evaluation:
    """A measurement of a model's quality, and how it was made.

    Args:
        model: Its name.
        family: Its family.
        num_blocks: L.
        model_sha256: Of the model that was measured: its configuration and its weights.
        windows: The text.
        perplexity: On the windows.
        run: How the numbers were made.
        pruning: How the model was pruned, by the `pruning.json` beside it; None without one.
    """

    model: str
    family: str
    num_blocks: int
    model_sha256: str
    windows: Windows
    perplexity: Perplexity
    run: Run
    pruning: PruningFacts | None = None


def evaluate(
    model: Model, windows: Windows, settings: Settings | None = None, **changes: Any
) -> Evaluation:
    """Perplexity of a model on windows of a text.

    Args:
        model: From `read_model`.
        windows: From `text_windows` or `id_windows`.
        settings: How it runs, on threads here; sums over the vocabulary are float64.
        **changes: Fields of the settings to change, such as `dtype="float64"`.

    Returns:
        The numbers, the same for every memory and number of threads.

    Raises:
        RefimplError: Tokens the model cannot read; NaN or Inf among the weights.

    Example:
        >>> from refimpl import read_model
        >>> from refimpl.loading.text import text_windows
        >>> model = read_model("fixtures/llama")
        >>> windows = text_windows("fixtures/text.txt", "fixtures/llama/tokenizer.json", 32)
        >>> evaluation = evaluate(model, windows)
        >>> len(evaluation.perplexity.nats), round(evaluation.perplexity.value)
        (33, 1589)
    """
    settings = replace(settings or Settings(), **changes)
    pruning, config = recorded_pruning(model), model.config
    laid = batches(windows.ids, config)
    with settings.open(model) as resources:
        started, sums = time.perf_counter(), dict[int, float]()
        resources.total = sum(batch.cost(config) for batch in laid)
        size = tokens_in_memory(model, laid, resources.memory, resources.dtype)
        how = resources.workers, resources.dtype, resources.tick
        # While the files are known to be unchanged, and beside the windows if there is a thread.
        sha256 = partial(model_sha256, model)
        beside = (
            resources.workers.submit(sha256) if resources.workers.threads > 1 else None
        )
        for group in batch_groups(laid, size):
            likelihoods = group_likelihoods(model, group, *how)
            sums |= {n: float(x.sum()) for n, x in likelihoods.items()}
        digest = beside.result() if beside else sha256()
    lengths = np.array([len(ids) - 1 for ids in windows.ids])
    covered = None if windows.bytes is None else np.array(windows.bytes)
    return Evaluation(
        model.name,
        config.family,
        config.num_blocks,
        digest,
        windows,
        Perplexity(-np.array([sums[n] for n in range(len(sums))]), lengths, covered),
        resources.run_since(started),
        pruning,
    )


Unknown = float | None


class WindowResult(Document, frozen=True, kw_only=True):
    """A window: predicted tokens, their summed -ln p, bytes covered."""

    tokens: AtLeastZero  # predicted tokens
    nats: float  # their summed -ln p
    bytes: int | None  # of text that they cover; null for ids


class TextResult(Document, frozen=True, kw_only=True):
    """Perplexity, and the sums of every window; without them in the record of a pruning."""

    source: str  # as in the table's header
    kind: str
    bos: int | None  # id that begins every window
    sha256: str  # SHA-256 of the ids, as little-endian int64
    window: AtLeastZero  # tokens per window, BOS included
    num_windows: AtLeastZero
    predicted_tokens: AtLeastZero  # all but the first of each window
    bytes: int | None  # of text that they cover; null for ids
    perplexity: Unknown  # null if it is too large for float64
    perplexity_stderr: Unknown  # over windows
    nats_per_token: float  # logarithm of the perplexity
    nats_per_token_stderr: Unknown
    bits_per_byte: Unknown  # null for ids
    windows: tuple[WindowResult, ...] = ()


class EvaluationDocument(Document, frozen=True, kw_only=True):
    """What `refimpl eval -o` writes; an older version wrote no digest of the model."""

    format: Literal[1]
    model: str  # name of its folder or file
    family: str  # model_type of its config.json
    num_blocks: AtLeastOne
    model_sha256: str | None = None  # SHA-256 of the configuration and all weight files
    dtype: str
    pruning: PruningFacts | None  # by the pruning.json in its folder
    text: TextResult
    run: Run


def evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON: unknown numbers are null."""
    text = _text(evaluation.windows, evaluation.perplexity)
    others = {"format": 1, "dtype": evaluation.run.dtype, "text": text}
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
        perplexity=result.value if isfinite(result.value) else None,
        perplexity_stderr=result.stderr if isfinite(result.stderr) else None,
        nats_per_token=result.mean_nats,
        nats_per_token_stderr=result.nats_stderr,
        bits_per_byte=result.bits_per_byte,
        windows=tuple(
            WindowResult(tokens=n, nats=x, bytes=size) for n, x, size in rows
        ),
    )
