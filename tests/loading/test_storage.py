"""Bytes: fused, transposed and interleaved tensors cut and joined, and files of any strides."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import FIXTURES
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from refimpl import RefimplError
from refimpl.loading import safetensors_file as tensors
from refimpl.loading.safetensors_file import DTYPES, SafetensorsFile, save_tensors
from refimpl.model.layout import WHOLE, Layout, cut, join
from refimpl.model.ops import Array

STORED_DTYPES = st.sampled_from(sorted(DTYPES))


def random_bytes(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> Array:
    """An array of random bytes: any bit pattern, NaN payloads and negative zeros included."""
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(count), dtype).reshape(shape)


def same(one: Array, other: Array) -> bool:
    """Whether two arrays have the same dtype, shape and bytes."""
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


# Cut and join


@st.composite
def fusions(draw: st.DrawFn) -> tuple[list[Layout], tuple[int, ...]]:
    """Layouts of all roles that share a tensor, and the tensor's shape."""
    heads, run = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    per_head, roles = draw(st.booleans()), draw(st.integers(1, 4))
    if per_head:
        rows = (heads * run,) * roles
    else:
        rows = tuple(draw(st.lists(st.integers(1, 7), min_size=roles, max_size=roles)))
    bias = draw(st.booleans())
    transposed = not bias and draw(st.booleans())
    shape: tuple[int, ...] = (sum(rows),) if bias else (sum(rows), draw(st.integers(1, 6)))
    layouts = [Layout(rows, i, run if per_head else 0, transposed) for i in range(roles)]
    return layouts, shape[::-1] if transposed else shape


@given(fusions(), STORED_DTYPES, st.integers(0, 2**32))
def test_what_is_cut_joins_to_the_same_bytes(
    fusion: tuple[list[Layout], tuple[int, ...]], dtype: str, seed: int
) -> None:
    layouts, shape = fusion
    stored = random_bytes(shape, DTYPES[dtype], seed)
    parts = [cut(stored, layout) for layout in layouts]
    assert [len(part) for part in parts] == list(layouts[0].rows)
    for layout in layouts:
        joined = join(parts, layout)
        assert joined.flags.c_contiguous
        assert same(joined, stored)


@given(fusions(), STORED_DTYPES, st.integers(0, 2**32))
def test_what_is_joined_is_cut_into_the_same_bytes(
    fusion: tuple[list[Layout], tuple[int, ...]], dtype: str, seed: int
) -> None:
    layouts, shape = fusion
    inputs = shape[0] if layouts[0].transposed else shape[-1]
    shapes = [(rows,) if len(shape) == 1 else (rows, inputs) for rows in layouts[0].rows]
    parts = [random_bytes(s, DTYPES[dtype], seed + i) for i, s in enumerate(shapes)]
    stored = join(parts, layouts[0])
    assert stored.shape == shape
    assert all(same(cut(stored, la), part) for la, part in zip(layouts, parts, strict=True))


@given(fusions(), st.integers(0, 2**32))
def test_every_stored_row_belongs_to_one_role(
    fusion: tuple[list[Layout], tuple[int, ...]], seed: int
) -> None:
    layouts, shape = fusion
    numbered = np.arange(int(np.prod(shape))).reshape(shape)
    found = np.concatenate([cut(numbered, layout).ravel() for layout in layouts])
    np.testing.assert_array_equal(np.sort(found), numbered.ravel())


def test_the_three_fused_layouts_by_hand() -> None:
    rows = np.arange(12)[:, None] * np.ones((1, 2), int)
    thirds = [cut(rows, Layout((4, 4, 4), i))[:, 0].tolist() for i in range(3)]
    assert thirds == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    by_head = [cut(rows, Layout((4, 4, 4), i, head_dim=2))[:, 0].tolist() for i in range(3)]
    assert by_head == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]
    unequal = [cut(rows, Layout((6, 2, 4), i))[:, 0].tolist() for i in range(3)]
    assert unequal == [[0, 1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11]]
    turned = cut(rows.T, Layout((4, 4, 4), 1, transposed=True))
    assert turned.tolist() == rows[4:8].tolist()
    assert cut(rows, WHOLE) is rows


# Files


SHAPES: dict[str, Callable[[Array], Array]] = {
    "contiguous": lambda a: np.ascontiguousarray(a),
    "Fortran": lambda a: np.asfortranarray(a),
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "backwards in all": lambda a: np.ascontiguousarray(np.flip(a))[
        (slice(None, None, -1),) * a.ndim
    ],
    "unaligned": lambda a: unaligned(a),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}


def unaligned(array: Array) -> Array:
    """The same values at an odd address."""
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    raw[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return raw.view(array.dtype).reshape(array.shape)


WRITABLE = [*DTYPES.values(), *map(np.dtype, ("i8", "u8", "i4", "u4", "i2", "u2", "i1", "u1", "?"))]
ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from(WRITABLE),
        st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple),
        st.sampled_from(sorted(SHAPES)),
        st.integers(0, 2**32),
    ),
    max_size=5,
)


def read_by_hand(path: Path) -> dict[str, Array]:
    """Every tensor of a file, from the format's description alone."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    dtypes = dict(DTYPES) | {"BOOL": np.dtype(bool)}
    dtypes |= {
        f"{kind.upper()}{8 * n}": np.dtype(f"{kind}{n}") for kind in "iu" for n in (1, 2, 4, 8)
    }
    return {
        name: np.frombuffer(
            raw[8 + length :][slice(*entry["data_offsets"])], dtypes[entry["dtype"]]
        ).reshape(entry["shape"])
        for name, entry in header.items()
    }


@given(ARRAYS, st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2))
def test_a_file_keeps_the_bytes_of_any_strides(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[str, Any], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    arrays = {
        name: SHAPES[strides](random_bytes(shape, dtype, seed).astype(dtype))
        for name, (dtype, shape, strides, seed) in plan.items()
    }
    before = {name: array.tobytes() for name, array in arrays.items()}
    save_tensors(path, arrays, metadata)
    assert {name: array.tobytes() for name, array in arrays.items()} == before
    found = read_by_hand(path)
    assert found.keys() == arrays.keys()
    assert all(same(found[name], array) for name, array in arrays.items())

    with safe_open(path, framework="np") as file:  # the library finds it whole
        assert set(file.keys()) == set(arrays)
        assert (file.metadata() or {}) == metadata
        for name, array in arrays.items():
            assert tuple(file.get_slice(name).get_shape()) == array.shape
            if array.dtype != DTYPES["BF16"]:
                assert same(file.get_tensor(name), array)
    ours = SafetensorsFile(path)
    assert ours.metadata == metadata
    for name, array in arrays.items():
        assert ours.tensors[name].offset % array.dtype.itemsize == 0
        if ours.tensors[name].dtype in DTYPES:
            assert same(ours.tensors[name].array, array)


@pytest.mark.parametrize("dtype", [">f8", ">f4", ">f2", ">i4"])
def test_a_file_is_little_endian(dtype: str, tmp_path: Path) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    save_tensors(tmp_path / "x", {"x": values, "y": values.T})
    found = read_by_hand(tmp_path / "x")
    assert found["x"].tolist() == values.tolist()
    assert found["y"].tolist() == values.T.tolist()


def test_scalars_and_nothing(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x", {"scalar": np.array(2.5), "none": np.empty((0, 3), np.float16)})
    found = read_by_hand(tmp_path / "x")
    assert found["scalar"].shape == ()
    assert found["scalar"] == 2.5
    assert found["none"].shape == (0, 3)
    save_tensors(tmp_path / "x", {})
    assert read_by_hand(tmp_path / "x") == {}


def test_the_same_arrays_give_the_same_file(tmp_path: Path) -> None:
    arrays = {"b": np.arange(3.0), "a": np.arange(3.0), "c": np.arange(3, dtype=np.int16)}
    save_tensors(tmp_path / "x", arrays, {"k": "v"})
    save_tensors(tmp_path / "y", dict(reversed(arrays.items())), {"k": "v"})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("case", ["llama", "llama3", "gpt2", "qwen3"])
def test_a_model_is_written_as_it_was(case: str, tmp_path: Path) -> None:
    source = SafetensorsFile(FIXTURES / case / "model.safetensors")
    arrays = {name: stored.array for name, stored in source.tensors.items()}
    save_tensors(tmp_path / "x", arrays, source.metadata)
    found = read_by_hand(tmp_path / "x")
    assert all(same(found[name], array) for name, array in arrays.items())
    assert (tmp_path / "x").stat().st_size == source.path.stat().st_size


def test_a_mapped_file_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": np.arange(5.0)})
    before = SafetensorsFile(path).tensors["x"].array
    save_tensors(path, {"x": before[::-1]})
    assert before.tolist() == [0, 1, 2, 3, 4]
    assert SafetensorsFile(path).tensors["x"].array.tolist() == [4, 3, 2, 1, 0]


def test_nothing_is_left_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": np.arange(5.0)})
    before = path.read_bytes()

    class FullDisk(dict[str, Array]):
        reads = 0

        def __getitem__(self, name: str) -> Array:
            FullDisk.reads += 1
            if FullDisk.reads > 5:  # the header is out, and one tensor
                raise OSError(28, "No space left on device")
            return super().__getitem__(name)

    with pytest.raises(RefimplError, match="No space left on device"):
        save_tensors(path, FullDisk(x=np.zeros(9), y=np.zeros(9)))
    assert FullDisk.reads > 5
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensors.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_tensors(path, {"x": np.zeros(9)})
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == before


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefimplError, match="x: dtype complex128 cannot be written"):
        save_tensors(tmp_path / "x", {"x": np.zeros(2, complex)})
    with pytest.raises(RefimplError, match="x: dtype float8_e4m3fn cannot be written"):
        save_tensors(tmp_path / "x", {"x": np.zeros(2, ml_dtypes.float8_e4m3fn)})
    with pytest.raises(RefimplError, match="No such file or directory"):
        save_tensors(tmp_path / "no" / "x", {"x": np.zeros(2)})
    with pytest.raises(RefimplError, match="Not a directory"):
        save_tensors(FIXTURES / "llama" / "config.json" / "x", {"x": np.zeros(2)})
    (tmp_path / "folder").mkdir()
    with pytest.raises(RefimplError, match="folder: cannot be written"):
        save_tensors(tmp_path / "folder", {"x": np.zeros(2)})
    assert os.listdir(tmp_path) == ["folder"]
