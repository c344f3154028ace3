"""The types of the metadata that refimpl reads, checked once, when a file is opened."""

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError

LARGEST = float(np.finfo(np.float32).max)
TEXT, FLAG, WHOLE, NUMBER = "a text", "true or false", "a whole number", "a finite number"
TEXTS, WHOLES, NUMBERS = "a list of texts", "a list of whole numbers", "a list of finite numbers"
# The types that a value may have, and the keys that it is read for; [^.]+ is an architecture.
TYPES: tuple[tuple[tuple[str, ...], str], ...] = (
    ((TEXT,), r"general\.(architecture|type)|tokenizer\.(ggml\.(model|pre)|chat_template)"
     r"|[^.]+\.rope\.scaling\.type"),
    ((FLAG,), r"tokenizer\.ggml\.add_((bos|eos|sep)_token|space_prefix)"
     r"|[^.]+\.(attention\.causal|rope\.scaling\.finetuned|use_parallel_residual)"),
    ((TEXTS,), r"tokenizer\.ggml\.(tokens|merges)|imatrix\.datasets"),
    ((WHOLES,), r"tokenizer\.ggml\.token_type"),
    ((NUMBERS, WHOLES), r"tokenizer\.ggml\.scores"),
    ((WHOLE,), r"general\.alignment|split\.(no|count|tensors\.count)|imatrix\.chunk_(count|size)"
     r"|tokenizer\.ggml\.\w+_token_id|[^.]+\.((context|embedding|expert\w*)_length|\w+_count"
     r"|attention\.((key|value)_length|sliding_window)|rope\.dimension_count"
     r"|rope\.scaling\.original_context_length)"),
    ((WHOLE, WHOLES), r"[^.]+\.(feed_forward_length|attention\.head_count(_kv)?)"),
    ((NUMBER, WHOLE), r"[^.]+\.(attention\.(layer_norm(_rms)?_epsilon|scale)"
     r"|(embedding|residual|logit)_scale|(attn|final)_logit_softcapping"
     r"|rope\.(freq_base(_swa)?|scale_linear|scaling\.(attn_)?factor))"),
)  # fmt: skip


def types_of(key: str) -> tuple[str, ...]:
    """The types that the value of a key may have; none if nothing reads it."""
    return next((types for types, pattern in TYPES if re.fullmatch(pattern, key)), ())


def check_types(metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse metadata whose values have other types than their keys say."""
    problems = [
        f"{key}: expected {' or '.join(types)}, got {reprlib.repr(value)}"
        for key, value in metadata.items()
        if (types := types_of(key)) and _type(value) not in types
    ]
    if problems:
        raise RefimplError(
            f"{path} has metadata of wrong types:",
            "the types that llama.cpp's converter writes",
            "download or convert the file again",
            problems,
        )


def _type(value: Any) -> str:
    """The type of a value; NaN, infinity and what float32 does not hold have none."""
    if isinstance(value, np.ndarray):
        kind = value.dtype.kind if np.isfinite(value).all() else ""
        return {"i": WHOLES, "u": WHOLES, "f": NUMBERS}.get(kind, "")
    if isinstance(value, float) and not abs(value) <= LARGEST:
        return ""
    return {str: TEXT, bool: FLAG, int: WHOLE, float: NUMBER, tuple: TEXTS}[type(value)]
