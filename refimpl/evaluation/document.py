"""`eval.json`: the quality of a model, window by window and question by question."""

from dataclasses import asdict
from math import isfinite
from typing import Any

from refimpl.evaluation.choices import Accuracy, Questions
from refimpl.evaluation.encoding import Choices
from refimpl.evaluation.evaluate import Evaluation
from refimpl.evaluation.perplexity import Perplexity
from refimpl.tokens import Windows

FORMAT = 1
FEW = "a standard error takes two or more"


def evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as JSON: unknown numbers are null, with the reason beside them."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "model": evaluation.model,
        "family": evaluation.family,
        "num_blocks": evaluation.num_blocks,
        "model_sha256": evaluation.model_sha256,
        "dtype": evaluation.run.dtype,
        "pruning": evaluation.pruning,
    }
    windows, perplexity = evaluation.windows, evaluation.perplexity
    questions, accuracy, choices = evaluation.questions, evaluation.accuracy, evaluation.choices
    if windows is not None and perplexity is not None:
        document["text"] = _text(windows, perplexity)
    if questions is not None and accuracy is not None and choices is not None:
        document["choices"] = _choices(questions, accuracy, choices)
    document["run"] = {
        **asdict(evaluation.run),
        "resumed_sequences": evaluation.resumed,
        "tokens": evaluation.tokens,
        "tokens_per_second": evaluation.tokens_per_second,
    }
    return document


def _text(windows: Windows, result: Perplexity) -> dict[str, Any]:
    """Perplexity, and the sums of every window."""
    covered = [None] * len(result.nats) if result.bytes is None else result.bytes.tolist()
    rows = zip(result.tokens.tolist(), result.nats.tolist(), covered, strict=True)
    return {
        "source": windows.source,
        "kind": windows.kind,
        "bos": windows.bos,
        "sha256": windows.sha256,
        "window": windows.window,
        "num_windows": len(windows.ids),
        "predicted_tokens": int(result.tokens.sum()),
        "bytes": None if result.bytes is None else int(result.bytes.sum()),
        "perplexity": _or_null(result.value),
        "perplexity_stderr": _or_null(result.stderr),
        "nats_per_token": result.mean_nats,
        "nats_per_token_stderr": _or_null(result.nats_stderr),
        **_reason(result.nats_stderr, "stderr_reason", f"{FEW} windows"),
        "bits_per_byte": _or_null(result.bits_per_byte),
        **_reason(result.bits_per_byte, "bits_per_byte_reason", "the ids came without their text"),
        "windows": [{"tokens": n, "nats": nats, "bytes": size} for n, nats, size in rows],
    }


def _choices(questions: Questions, result: Accuracy, choices: Choices) -> dict[str, Any]:
    """Accuracies, and the log likelihoods of every question."""
    rows = zip(
        result.answers, result.picked, result.picked_norm, result.log_likelihoods, strict=True
    )
    return {
        "source": questions.source,
        "sha256": questions.sha256,
        "ids_sha256": choices.sha256,
        "start": choices.start,
        "num_questions": len(questions.questions),
        "num_choices": len(choices.sequences),
        "truncated_choices": choices.truncated,
        "acc": result.acc,
        "acc_stderr": _or_null(result.acc_stderr),
        "acc_norm": result.acc_norm,
        "acc_norm_stderr": _or_null(result.acc_norm_stderr),
        **_reason(result.acc_stderr, "stderr_reason", f"{FEW} questions"),
        "questions": [
            {
                "answer": int(answer),
                "picked": int(picked),
                "picked_norm": int(picked_norm),
                "log_likelihoods": each.tolist(),
            }
            for answer, picked, picked_norm, each in rows
        ],
    }


def _or_null(value: float) -> float | None:
    """The number, or None for NaN."""
    return value if isfinite(value) else None


def _reason(value: float, key: str, reason: str) -> dict[str, str]:
    """Under this key, the reason why a number is unknown, if it is."""
    return {} if isfinite(value) else {key: reason}
