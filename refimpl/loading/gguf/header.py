"""The header of a GGUF file, read with a bound on all that it claims; the types of its values."""

import os
import re
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refimpl.errors import RefimplError

MOST_ENTRIES, MOST_ELEMENTS, MOST_DIMENSIONS = 1 << 16, 1 << 20, 4
MOST_NAME, MOST_STRING = 1 << 10, 1 << 24  # bytes of a name; of all else that is a string
_NUMBERS = dict(zip(range(13), ("B", "b", "H", "h", "I", "i", "f", "?", "", "", "Q", "q", "d"),
                    strict=True))  # fmt: skip
_STRING, _ARRAY, _ALIGNMENT = 8, 9, 32
LARGEST = float(np.finfo(np.float32).max)
TEXT, FLAG, WHOLE, NUMBER = "a text", "true or false", "a whole number", "a finite number"
TEXTS, WHOLES, NUMBERS = "a list of texts", "a list of whole numbers", "a list of finite numbers"
FLAGS, QUANTILES = "a list of true and false", "a list of finite numbers and -infinity"
# The types that a value may have, and the keys that it is read for; [^.]+ is an architecture.
TYPES: tuple[tuple[tuple[str, ...], str], ...] = (
    ((TEXT,), r"general\.(architecture|type)|tokenizer\.(ggml\.(model|pre)|chat_template)"
     r"|[^.]+\.(rope\.scaling\.type|tensor_data_layout)"),
    ((FLAG,), r"tokenizer\.ggml\.add_((bos|eos|sep)_token|space_prefix)"
     r"|[^.]+\.(attention\.causal|rope\.scaling\.finetuned|use_parallel_residual"
     r"|expert_weights_norm)"),
    ((TEXTS,), r"tokenizer\.ggml\.(tokens|merges)|imatrix\.datasets"),
    ((WHOLES,), r"tokenizer\.ggml\.token_type|[^.]+\.rope\.dimension_sections"),
    ((FLAGS, WHOLES, WHOLE), r"[^.]+\.attention\.sliding_window_pattern"),
    ((FLAGS,), r"[^.]+\.attention\.recurrent_layers"),
    ((NUMBERS, WHOLES), r"tokenizer\.ggml\.scores"),
    ((NUMBERS,), r"([^.]+\.)?xielu\.\w+"),
    ((WHOLE,), r"general\.alignment|split\.(no|count|tensors\.count)|imatrix\.chunk_(count|size)"
     r"|tokenizer\.ggml\.\w+_token_id|[^.]+\.((context|embedding|expert\w*)_length|\w+_count|expert_gating_func"
     r"|attention\.((key|value)_length(_mla|_swa)?|sliding_window|(q|kv)_lora_rank|shared_kv_layers)"
     r"|embedding_length_per_layer_input|ssm\.\w+|full_attention_interval|nextn_predict_layers"
     r"|rope\.dimension_count(_swa)?"
     r"|rope\.scaling\.original_context_length|interleave_moe_layer_step|shortconv\.l_cache"
     r"|n_deepstack_layers)"),
    ((WHOLE, WHOLES), r"[^.]+\.(feed_forward_length|attention\.head_count(_kv)?)"),
    ((NUMBER, WHOLE), r"[^.]+\.(attention\.(layer_norm(_rms)?_epsilon|scale|clamp_kqv"
     r"|max_alibi_bias)|(embedding|residual|logit)_scale|(attn|final)_logit_softcapping"
     r"|rope\.(freq_base(_swa)?|scale_linear|scaling\.((attn_)?factor|yarn_\w+))"
     r"|expert_weights_scale)"),
)  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of the file: its name, shape (rows first), number of its type, first byte."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def damaged(path: Path, problem: str) -> RefimplError:
    """The error for a file that is not what its format requires."""
    return RefimplError(
        f"{path} is not a whole GGUF file: {problem}",
        "a GGUF file of version 2 or 3, little-endian, with a valid header, offsets and length",
        "download or convert the file again, and compare its size with the source",
    )


def read_header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], list[TensorEntry]]:
    """The metadata (arrays, tuples of strings) and the tensors; no count is believed unchecked."""
    reader = _Reader(path, file)
    if reader.take(4) != b"GGUF":
        raise damaged(path, "it does not begin with GGUF")
    if (version := reader.number("I")) not in (2, 3):
        raise damaged(path, f"its version is {version}")
    num_tensors = reader.count("tensors", MOST_ENTRIES, 24)
    num_entries = reader.count("metadata entries", MOST_ENTRIES, 13)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = reader.string("a key", MOST_NAME)
        if key in metadata:
            raise damaged(path, f"two values of {key}")
        metadata[key] = reader.value(key, reader.number("I"))
    check_types(metadata, path)
    entries = [reader.tensor() for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if alignment not in [8 << shift for shift in range(14)]:
        raise damaged(path, f"its alignment is {alignment}, not a power of 2 from 8 to 65536")
    start = -(-reader.at // alignment) * alignment
    if len({entry.name for entry in entries}) < len(entries):
        raise damaged(path, "two tensors of one name")
    if crooked := [entry.name for entry in entries if entry.offset % alignment]:
        raise damaged(path, f"{crooked[0]} is not aligned to {alignment} bytes")
    return metadata, [replace(entry, offset=start + entry.offset) for entry in entries]


class _Reader:
    """A place in a header, which moves on."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self._file, self.at = path, file, 0
        self.size = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        """The next bytes."""
        content = self._file.read(count) if count <= self.size - self.at else b""
        if len(content) < count:
            raise damaged(self.path, f"it ends in its header, at byte {self.size}")
        self.at += count
        return content

    def number(self, code: str) -> Any:
        """The next number."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, what: str, most: int, size: int) -> int:
        """The next count of things that take at least `size` bytes each."""
        number: int = self.number("Q")
        if number > most or number * size > self.size - self.at:
            raise damaged(self.path, f"{number} {what}, more than {most} or than it has bytes for")
        return number

    def string(self, what: str, most: int = MOST_STRING) -> str:
        """The next string."""
        raw = self.take(self.count(f"bytes in {what}", most, 1))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise damaged(self.path, f"{what} is not UTF-8 ({raw[:20]!r})") from None

    def value(self, key: str, kind: int) -> Any:
        """The next value of metadata."""
        if kind == _STRING:
            return self.string(key)
        if kind != _ARRAY:
            return self.number(self._code(key, kind))
        kind = self.number("I")
        if kind == _STRING:
            count = self.count(f"strings in {key}", MOST_ELEMENTS, 8)
            return tuple(self.string(key, MOST_NAME) for _ in range(count))
        dtype = np.dtype(f"<{self._code(key, kind)}")
        count = self.count(f"numbers in {key}", MOST_ELEMENTS, dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def tensor(self) -> TensorEntry:
        """The next tensor; its offset counts from the start of the data."""
        name = self.string("the name of a tensor", MOST_NAME)
        if not 1 <= (dimensions := self.number("I")) <= MOST_DIMENSIONS:
            raise damaged(self.path, f"{name} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
        if not 0 < prod(shape) < 1 << 62:
            raise damaged(self.path, f"{name} has the shape {list(shape)}")
        return TensorEntry(name, shape, self.number("I"), self.number("Q"))

    def _code(self, key: str, kind: int) -> str:
        """The struct code of a kind of number."""
        if not (code := _NUMBERS.get(kind, "")):
            nested = "an array in an array" if kind == _ARRAY else f"of the unknown type {kind}"
            raise damaged(self.path, f"{key} is {nested}")
        return code


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
    """The type of a value; NaN, +infinity and what float32 does not hold have none."""
    if isinstance(value, np.ndarray):
        kinds = {"i": WHOLES, "u": WHOLES, "f": NUMBERS, "b": FLAGS}
        if np.isfinite(value).all():
            return kinds[value.dtype.kind]
        return QUANTILES if np.isfinite(value[value != -np.inf]).all() else ""
    if isinstance(value, float) and not abs(value) <= LARGEST:
        return ""
    return {str: TEXT, bool: FLAG, int: WHOLE, float: NUMBER, tuple: TEXTS}[type(value)]
