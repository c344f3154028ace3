"""`eval.json`: what a model is worth, window by window and question by question, and how found."""

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


def evaluation_document(found: Evaluation) -> dict[str, Any]:
    """An evaluation as one JSON document.

    Args:
        found: From `evaluate`.

    Returns:
        The document: numbers, strings, lists and objects; unknown numbers are null, with the
        reason beside them.
    """
    document: dict[str, Any] = {
        "format": FORMAT,
        "model": found.model,
        "family": found.family,
        "num_blocks": found.num_blocks,
        "dtype": found.run.dtype,
    }
    if found.windows is not None and found.perplexity is not None:
        document["text"] = _text(found.windows, found.perplexity)
    if found.questions is not None and found.accuracy is not None and found.choices is not None:
        document["choices"] = _choices(found.questions, found.accuracy, found.choices)
    document["run"] = {
        **asdict(found.run),
        "versions": dict(found.run.versions),
        "resumed_sequences": found.resumed,
        "tokens": found.tokens,
        "tokens_per_second": found.tokens_per_second,
    }
    return document


def _text(windows: Windows, found: Perplexity) -> dict[str, Any]:
    """Perplexity, and the sums of every window."""
    covered = [None] * len(found.nats) if found.bytes is None else found.bytes.tolist()
    rows = zip(found.tokens.tolist(), found.nats.tolist(), covered, strict=True)
    return {
        "source": windows.source,
        "kind": windows.kind,
        "bos": windows.bos,
        "sha256": windows.sha256,
        "window": windows.window,
        "num_windows": len(windows.ids),
        "predicted_tokens": int(found.tokens.sum()),
        "bytes": None if found.bytes is None else int(found.bytes.sum()),
        "perplexity": found.value,
        "perplexity_stderr": _known(found.stderr),
        "nats_per_token": found.mean_nats,
        "nats_per_token_stderr": _known(found.nats_stderr),
        **({} if isfinite(found.stderr) else {"stderr_reason": f"{FEW} windows"}),
        "bits_per_byte": _known(found.bits_per_byte),
        **(
            {}
            if isfinite(found.bits_per_byte)
            else {"bits_per_byte_reason": "the ids came without their text"}
        ),
        "windows": [{"tokens": n, "nats": nats, "bytes": size} for n, nats, size in rows],
    }


def _choices(questions: Questions, found: Accuracy, choices: Choices) -> dict[str, Any]:
    """Accuracies, and the log likelihoods of every question."""
    rows = zip(found.answers, found.picked, found.picked_norm, found.log_likelihoods, strict=True)
    return {
        "source": questions.source,
        "sha256": questions.sha256,
        "ids_sha256": choices.sha256,
        "start": choices.start,
        "num_questions": len(questions.questions),
        "num_choices": len(choices.sequences),
        "truncated_choices": choices.truncated,
        "acc": found.acc,
        "acc_stderr": _known(found.acc_stderr),
        "acc_norm": found.acc_norm,
        "acc_norm_stderr": _known(found.acc_norm_stderr),
        **({} if isfinite(found.acc_stderr) else {"stderr_reason": f"{FEW} questions"}),
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


def _known(value: float) -> float | None:
    """The number, or None for NaN."""
    return value if isfinite(value) else None
