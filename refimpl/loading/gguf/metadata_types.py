"""The types of the metadata that refimpl reads, checked once, when a file is opened."""

import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError

LARGEST = float(np.finfo(np.float32).max)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return (_whole(value) or isinstance(value, float)) and abs(value) <= LARGEST


def _wholes(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu"


def _numbers(value: Any) -> bool:
    return _wholes(value) or (
        isinstance(value, np.ndarray) and value.dtype.kind == "f" and bool(np.isfinite(value).all())
    )


# A type, whether a value has it, and the keys that must have it; [^.]+ is an architecture.
TYPES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "a text",
        lambda value: isinstance(value, str),
        r"general\.(architecture|type)|tokenizer\.(ggml\.(model|pre)|chat_template)"
        r"|[^.]+\.rope\.scaling\.type",
    ),
    (
        "true or false",
        lambda value: isinstance(value, bool),
        r"tokenizer\.ggml\.add_\w+"
        r"|[^.]+\.(attention\.causal|rope\.scaling\.finetuned|use_parallel_residual)",
    ),
    (
        "a list of texts",
        lambda value: isinstance(value, tuple),
        r"tokenizer\.ggml\.(tokens|merges)|imatrix\.datasets",
    ),
    ("a list of whole numbers", _wholes, r"tokenizer\.ggml\.token_type"),
    ("a list of finite numbers", _numbers, r"tokenizer\.ggml\.scores"),
    (
        "a whole number",
        _whole,
        r"general\.alignment|split\.(no|count|tensors\.count)|tokenizer\.ggml\.\w+_token_id"
        r"|imatrix\.chunk_(count|size)|[^.]+\.((context|embedding|expert\w*)_length|\w+_count"
        r"|attention\.((key|value)_length|sliding_window)|rope\.dimension_count"
        r"|rope\.scaling\.original_context_length)",
    ),
    (
        "a whole number, or one for each block",
        lambda value: _whole(value) or _wholes(value),
        r"[^.]+\.(feed_forward_length|attention\.head_count(_kv)?)",
    ),
    (
        "a finite number",
        _number,
        r"[^.]+\.(attention\.(layer_norm(_rms)?_epsilon|scale)|(embedding|residual|logit)_scale"
        r"|(attn|final)_logit_softcapping"
        r"|rope\.(freq_base(_swa)?|scale_linear|scaling\.(attn_)?factor))",
    ),
)


def type_of(key: str) -> tuple[str, Callable[[Any], bool]] | None:
    """The type that the value of a key must have, and its test; None if nothing reads it."""
    found = ((name, test) for name, test, pattern in TYPES if re.fullmatch(pattern, key))
    return next(found, None)


def check_types(metadata: Mapping[str, Any], path: Path) -> None:
    """Refuse metadata whose values have other types than their keys say."""
    problems = [
        f"{key}: expected {expected[0]}, got {reprlib.repr(value)}"
        for key, value in metadata.items()
        if (expected := type_of(key)) is not None and not expected[1](value)
    ]
    if problems:
        raise RefimplError(
            f"{path} has metadata of wrong types:",
            "the types that llama.cpp's converter writes",
            "download or convert the file again",
            problems,
        )
