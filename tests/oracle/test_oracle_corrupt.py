"""`refimpl check` on 200 candidates that are damaged or made to deceive: the exit code, each time.

Every one is drawn from its number; `python -m pytest -k "corrupt and 17"` runs it again.
"""

import json
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from checkpoints import save_tensors
from conftest import FIXTURES
from program import run

from refimpl.model.ops import Array
from refimpl.oracle.case import Case, read_case
from refimpl.oracle.steps import steps

COUNT = 200
CASE = FIXTURES / "cases" / "llama"
Arrays = dict[str, Array]
Draw = np.random.Generator


@cache
def case() -> Case:
    return read_case(CASE)


@pytest.fixture(autouse=True, scope="module")
def one_case() -> None:
    """The case is read once: what is tested is the candidate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refimpl.oracle.case.read_case", lambda path: case())
        yield


@cache
def right() -> Arrays:
    """What a right candidate computes in float32."""
    found = steps(case().model, case().inputs["token_ids"], case().recipe, np.float32)
    return {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in found.items()}


@cache
def whole() -> bytes:
    """Its file."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "actual.safetensors"
        save_tensors(path, right())
        return path.read_bytes()


def parts() -> tuple[dict[str, dict[str, object]], bytes]:
    """Header and data of its file."""
    (length,) = struct.unpack("<Q", whole()[:8])
    return json.loads(whole()[8 : 8 + length]), whole()[8 + length :]


def joined(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def a_step(draw: Draw, dims: int = 1, words: str = "") -> str:
    """A step of float numbers, with as many axes at least, and not all of one size."""
    names = [
        k
        for k, v in right().items()
        if v.dtype.kind == "f" and v.ndim >= dims and words in k and v.size > 1
    ]
    return str(draw.choice(names))


# What cannot be read: 2.


def cut(draw: Draw) -> bytes:
    return whole()[: int(draw.integers(0, len(whole())))]


def longer(draw: Draw) -> bytes:
    return whole() + draw.bytes(int(draw.integers(1, 99)))


def length(draw: Draw) -> bytes:
    sizes = (0, 1, 7, 2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)
    return struct.pack("<Q", sizes[draw.integers(len(sizes))]) + whole()[8:]


def no_json(draw: Draw) -> bytes:
    texts = (b"{", b"[]", b"nonsense", b"\xff\xfe\x00", b"null", b'{"a": 1}', b"[" * 5000, b"")
    return joined(texts[int(draw.integers(len(texts)))], parts()[1])


def noise(draw: Draw) -> bytes:
    return draw.bytes(int(draw.integers(0, 500)))


def offsets(draw: Draw) -> bytes:
    header, data = parts()
    name = str(draw.choice(list(header)))
    start, end = header[name]["data_offsets"]  # type: ignore[misc]
    wrong = [
        [start + 4, end + 4],
        [end, start],
        [0, 2**62],
        [-8, end - start - 8],
        [start, end - 4],
    ]
    header[name]["data_offsets"] = wrong[int(draw.integers(len(wrong)))]
    return joined(header, data)


def shapes(draw: Draw) -> bytes:
    header, data = parts()
    name = str(draw.choice(list(header)))
    shape: list[int] = header[name]["shape"]  # type: ignore[assignment]
    wrong = ([*shape, 2], [2**62, 4], [0], [-1], "all", [[2]])
    header[name]["shape"] = wrong[int(draw.integers(len(wrong)))]
    return joined(header, data)


def kinds(draw: Draw) -> bytes:
    header, data = parts()
    name = str(draw.choice([k for k, x in header.items() if x["dtype"] == "F32"]))
    header[name]["dtype"] = str(draw.choice(["F64", "Q4_K", "", "float32", "BF16"]))
    return joined(header, data)


def twice(draw: Draw) -> bytes:
    """A name that comes twice: whichever is taken, the other's bytes belong to nobody."""
    header, data = parts()
    one, other = (json.dumps(str(x)) for x in draw.choice(list(header), 2, replace=False))
    return joined(json.dumps(header).replace(f"{one}: {{", f"{other}: {{").encode(), data)


def no_floats(draw: Draw) -> Arrays:
    return {k: v for k, v in right().items() if v.dtype.kind != "f"}


# What is read, and not what it should be: 1.


def changed(step: str, value: Array) -> Arrays:
    return right() | {step: value}


def one_bad(draw: Draw) -> Arrays:
    step = a_step(draw)
    value = right()[step].copy()
    value.reshape(-1)[draw.integers(value.size)] = draw.choice([np.nan, np.inf, -np.inf])
    return changed(step, value)


def zeros(draw: Draw) -> Arrays:
    step = a_step(draw, 2)
    return changed(step, np.zeros_like(right()[step]))


def turned(draw: Draw) -> Arrays:
    step = a_step(draw)
    return changed(step, -right()[step])


def scaled(draw: Draw) -> Arrays:
    step = a_step(draw, 3)
    return changed(step, right()[step] * np.float32(1.001))


def shifted(draw: Draw) -> Arrays:
    step = a_step(draw, 3)
    return changed(step, np.roll(right()[step], 1, axis=1))


def transposed(draw: Draw) -> Arrays:
    step = a_step(draw, 2)
    return changed(step, np.swapaxes(right()[step], -1, -2))


def integers(draw: Draw) -> Arrays:
    step = a_step(draw)
    kind = draw.choice(["int8", "uint8", "int64", "bool"])
    return changed(step, np.clip(np.rint(right()[step]), 0, 1).astype(kind))


def empty(draw: Draw) -> Arrays:
    step = str(draw.choice(list(right())))
    kind = right()[step].dtype
    return changed(step, np.zeros([(0,), (0, 0), (3, 0, 2)][draw.integers(3)], kind))


def swapped(draw: Draw) -> Arrays:
    names = [f"blocks.{i}.{point}" for i in range(4) for point in ("attn_norm", "mlp_out")]
    one, other = draw.choice(names, 2, replace=False)
    return right() | {one: right()[other], other: right()[one]}


def huge(draw: Draw) -> Arrays:
    step = a_step(draw)
    return changed(step, np.full(right()[step].shape, 1e308))


def floats_for_bits(draw: Draw) -> Arrays:
    step = str(draw.choice([k for k, v in right().items() if v.dtype.kind != "f"]))
    return changed(step, right()[step].astype(np.float32))


def a_keep(draw: Draw) -> tuple[str, Array]:
    step = str(draw.choice([k for k in right() if k.endswith(".keep")]))
    return step, right()[step]


def bytes_of_bits(draw: Draw) -> Arrays:
    step, keep = a_keep(draw)
    return changed(step, np.unpackbits(keep, axis=1))


def truths(draw: Draw) -> Arrays:
    step, keep = a_keep(draw)
    return changed(step, np.unpackbits(keep, axis=1).astype(np.bool_))


def other_length(draw: Draw) -> Arrays:
    step, keep = a_keep(draw)
    return changed(step, keep[:, :-1] if draw.integers(2) else np.repeat(keep, 2, axis=1))


def inverted(draw: Draw) -> Arrays:
    step, keep = a_keep(draw)
    return changed(step, ~keep)


def beyond_a_byte(draw: Draw) -> Arrays:
    step, keep = a_keep(draw)
    return changed(step, keep.astype(np.int64) - int(draw.choice([256, -256, 2**32])))


def one_count(draw: Draw) -> Arrays:
    step = str(draw.choice([k for k in right() if k.endswith(".counts")]))
    value = right()[step].copy()
    value.reshape(-1)[draw.integers(value.size)] += draw.choice([-1, 1, -(10**6), 2**62])
    return changed(step, value)


# What lacks something: 3; what does no harm: 0.


def lacking(draw: Draw) -> Arrays:
    gone = draw.choice(list(right()), int(draw.integers(1, 99)), replace=False)
    return {k: v for k, v in right().items() if k not in gone}


def renamed(draw: Draw) -> Arrays:
    step = a_step(draw)
    return {f"{k}." if k == step else k: v for k, v in right().items()}


def more(draw: Draw) -> Arrays:
    name = str(draw.choice(["", "a" * 3000, "blocks.99.q", "../../x", "\n", "owl.signal.keep"]))
    return right() | {name: draw.standard_normal((2, 0) if draw.integers(2) else (2, 3))}


def in_order(draw: Draw) -> Arrays:
    names = draw.permutation(list(right()))
    return {str(name): right()[str(name)] for name in names}


def wider(draw: Draw) -> Arrays:
    step = a_step(draw)
    return changed(step, right()[step].astype(np.float64))


def wide_integers(draw: Draw) -> Arrays:
    step, keep = a_keep(draw)
    return changed(step, keep.astype(draw.choice(["int16", "int64", "uint64"])))


Make = Callable[[Draw], bytes | Arrays]
EXPECTED: dict[int, tuple[Make, ...]] = {
    2: (cut, longer, length, no_json, noise, offsets, shapes, kinds, twice, no_floats),
    1: (
        one_bad, zeros, turned, scaled, shifted, transposed, integers, empty, swapped, huge,
        floats_for_bits, bytes_of_bits, truths, other_length, inverted, beyond_a_byte, one_count,
    ),
    3: (lacking, renamed),
    0: (more, in_order, wider, wide_integers),
}  # fmt: skip
MADE = [(code, make) for code, makes in EXPECTED.items() for make in makes]


@pytest.mark.parametrize("number", range(COUNT))
def test_a_corrupt_candidate_ends_as_it_should(number: int, tmp_path: Path) -> None:
    code, make = MADE[number % len(MADE)]
    found, path = make(np.random.default_rng(number)), tmp_path / "actual.safetensors"
    if isinstance(found, bytes):
        path.write_bytes(found)
    else:
        save_tensors(path, found)
    done = run("check", CASE, path)
    assert done.code == code, (make.__name__, done.out, done.err)
    assert "Traceback" not in done.out + done.err
    assert "Warning" not in done.err
    if code == 2:
        assert not done.out
        assert "expected: " in done.err
        assert "next: " in done.err
    else:
        last = {0: "passes: ", 1: "again: ", 3: "inconclusive: "}[code]
        assert done.out.splitlines()[-1].startswith(last)


def test_every_kind_is_drawn() -> None:
    assert 5 * len(MADE) <= COUNT


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "empty", tmp_path / "none", tmp_path / "link"):
        done = run("check", CASE, path)
        assert (done.code, done.out) == (2, "")
        assert "next: " in done.err
    assert run("check", CASE, tmp_path / "loop").code == 2
