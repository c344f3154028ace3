"""The form of an evaluation, as far as a report depends on it; other fields may be beside."""

from refimpl.pruning.record_schema import FACTS, RUN

TEXT = ("perplexity", "nats_per_token", "bits_per_byte")
QUESTIONS = ("acc", "acc_norm")


def _measured(names: tuple[str, ...], digest: str) -> dict[str, object]:
    """A text or questions: its source, its digest, and numbers that may be unknown."""
    numbers = {key: {"type": ["number", "null"]} for n in names for key in (n, f"{n}_stderr")}
    texts = {key: {"type": "string"} for key in ("source", digest)}
    return {
        "type": ["object", "null"],
        "required": [*texts, *names],
        "properties": texts | numbers,
    }


EVALUATION = {
    "type": "object",
    "required": ["model", "family", "num_blocks", "run"],
    "properties": {
        "run": RUN,
        "model": {"type": "string"},
        "family": {"type": "string"},
        "model_sha256": {"type": ["string", "null"]},
        "num_blocks": {"type": "integer", "minimum": 1},
        "pruning": FACTS,
        "text": _measured(TEXT, "sha256"),
        "choices": _measured(QUESTIONS, "ids_sha256"),
    },
}
