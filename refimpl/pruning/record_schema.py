"""The form of `pruning.json`, as far as any command depends on it; other fields may be beside."""

from typing import Any

COUNTS = ("weights", "requested", "pruned", "kept_zeros", "zeros")
_TEXT, _TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}

FACTS: dict[str, Any] = {  # `pruning_facts`, which an evaluation records, too
    "type": ["object", "null"],
    "required": ["model", "method", "pattern", "sparsity", "base", "correct", "strength"],
    "properties": {
        **dict.fromkeys(("model", "method"), _TEXT),
        **dict.fromkeys(("pattern", "base", "correct", "sha256"), _TEXT_OR_NULL),
        "sparsity": {"type": "number", "minimum": 0},
        "strength": {"type": ["number", "string", "null"]},
    },
}
RUN: dict[str, Any] = {  # of a pruning and of an evaluation
    "type": "object",
    "required": ["dtype", "versions"],
    "properties": {"dtype": _TEXT, "versions": {"type": "object"}},
}
_LINEAR = {
    "name": _TEXT,
    "sparsity": {"type": "number", "minimum": 0},
    **dict.fromkeys(COUNTS, _COUNT),
    "weights": {"type": "integer", "minimum": 1},
}
_LINEARS = {
    "type": "array",
    "minItems": 1,
    "items": {"type": "object", "required": list(_LINEAR), "properties": _LINEAR},
}
_BLOCK = {"type": "object", "required": ["linears"], "properties": {"linears": _LINEARS}}
RECORD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        **dict.fromkeys(("model", "family", "method"), _TEXT),
        "run": RUN,
        "pattern": _TEXT_OR_NULL,
        "requested_sparsity": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "total_pruned": _COUNT,
        "total_weights": {"type": "integer", "minimum": 1},
        "allocation": {
            "type": "object",
            "properties": {
                **dict.fromkeys(("base", "correct"), _TEXT_OR_NULL),
                "strength": {"type": ["number", "string", "null"]},
            },
        },
        "blocks": {"type": "array", "minItems": 1, "items": _BLOCK},
        "files": {"type": "object", "properties": {"sha256": _TEXT}},
    },
}
WHOLE_RECORD = RECORD_SCHEMA | {
    "required": [
        "model", "family", "method", "pattern", "total_pruned", "total_weights", "allocation",
        "blocks", "run",
    ]
}  # fmt: skip
