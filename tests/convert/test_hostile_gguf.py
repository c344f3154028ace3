"""Hostile GGUF files: one error each, within memory and time."""

import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_files import Q, gguf_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import refusal_of

from refimpl import RefimplError, read_model
from refimpl.convert.conversion import convert

HUGE = (1 << 64) - 1
STRING, ARRAY, UINT32 = 8, 9, 4


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A string, with any length before it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def entry(key: str = "k", kind: int = UINT32, value: bytes = b"\1\0\0\0") -> bytes:
    """One entry of metadata."""
    return text(key) + struct.pack("<I", kind) + value


def tensor(
    name: str = "t",
    shape: tuple[int, ...] = (32,),
    kind: int = 0,
    offset: int = 0,
    dimensions: int | None = None,
) -> bytes:
    """One tensor's entry."""
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    count = len(shape) if dimensions is None else dimensions
    return (
        text(name) + struct.pack("<I", count) + sizes + struct.pack("<IQ", kind, offset)
    )


def file(
    entries: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    version: int = 3,
    num_tensors: int | None = None,
    num_entries: int | None = None,
    data: int = 4096,
) -> bytes:
    """A file of these parts, whatever it says about them."""
    entries, tensors = entries or [], tensors or []
    counts = (
        len(tensors) if num_tensors is None else num_tensors,
        len(entries) if num_entries is None else num_entries,
    )
    head = b"GGUF" + struct.pack("<IQQ", version, *counts)
    return head + b"".join(entries) + b"".join(tensors) + b"\0" * data


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    """The value of an array."""
    return struct.pack("<IQ", kind, count) + content


HOSTILE = {
    "empty": b"",
    "another format": b"PK\3\4" + b"\0" * 100,
    "only the magic": b"GGUF",
    "all entries of the world": file(num_entries=HUGE),
    "a key without an end": file([text("k", HUGE)]),
    "a key that is no text": file([text(b"\xff\xfe") + b"\0" * 8]),
    "a value without an end": file([entry("k", STRING, struct.pack("<Q", 1 << 62))]),
    "two values of a key": file([entry(), entry()]),
    "an array of a gigabyte": file([entry("k", ARRAY, array(0, 1 << 30))]),
    "strings without an end": file([entry("k", ARRAY, array(STRING, HUGE))]),
    "a million strings": file([entry("k", ARRAY, array(STRING, 10**6))]),
    "alignment 0": file([entry("general.alignment", value=b"\0" * 4)]),
    "no dimension": file(tensors=[tensor(shape=())]),
    "four billion dimensions": file(tensors=[tensor(dimensions=2**32 - 1)]),
    "a size beyond 64 bits": file(tensors=[tensor(shape=(HUGE, HUGE))]),
    "larger than the file": file(tensors=[tensor(shape=(32, 1 << 40))]),
    "an offset that wraps": file(tensors=[tensor(offset=HUGE - 31)]),
    "an unknown quantisation": file(tensors=[tensor(kind=9999)]),
    "integers": file(tensors=[tensor(kind=24)]),
    "half a block": file(tensors=[tensor(shape=(33,), kind=8)]),
    "two tensors of a name": file(tensors=[tensor(), tensor()]),
    "tensors that overlap": file(tensors=[tensor(), tensor("u", offset=64)]),
    "no architecture": file(),
    "an unknown architecture": file(
        [entry("general.architecture", STRING, text("mamba"))]
    ),
    "a part of many": file(
        [
            entry("general.architecture", STRING, text("llama")),
            entry("split.count", value=b"\xff\xff\xff\xff"),
        ]
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_one_error_within_memory_and_time(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HOSTILE[name])
    tracemalloc.start()
    started = time.perf_counter()
    refusal_of(convert, path, tmp_path / "out", says=str(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20
    assert time.perf_counter() - started < 5
    assert [x.name for x in tmp_path.iterdir()] == ["model.gguf"]


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_files_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    source = folder / "llama-Q4_0.gguf"
    if not source.exists():
        gguf_file(folder, "llama", Q.Q4_0, tokenizer=True)
    content = bytearray(source.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for at in data.draw(st.lists(st.integers(0, 9000), min_size=1, max_size=4)):
            content[at] = data.draw(st.integers(0, 255))
    path = folder / "damaged.gguf"
    path.write_bytes(content)
    with suppress(RefimplError):
        convert(path, folder / "out", force=True)
        read_model(folder / "out")


@pytest.mark.parametrize(
    ("kind", "stored", "count"),
    [(Q.Q8_0, np.float16(np.inf).tobytes(), 32), (Q.BF16, b"\x81\x7f", 1)],
    ids=["a scale", "a NaN that signals"],
)
def test_weights_that_are_not_finite(
    kind: Q, stored: bytes, count: int, tmp_path: Path
) -> None:
    path = gguf_file(tmp_path, "llama", kind)
    places = {
        tensor.name: tensor.data_offset for tensor in gguf.GGUFReader(path).tensors
    }
    content = bytearray(path.read_bytes())
    at = places["blk.0.attn_v.weight"]
    content[at : at + 2] = stored
    path.write_bytes(content)
    says = f"v_proj.weight has {count} values that are NaN"
    refusal_of(convert, path, tmp_path / "out", says=says)
