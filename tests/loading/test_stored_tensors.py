"""Bytes: fused, transposed and interleaved tensors cut and joined, and files read unchanged."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import save_tensors
from hypothesis import given
from hypothesis import strategies as st
from strategies import seeds

from refimpl.loading.files.safetensors_file import SafetensorsFile, write_arrays
from refimpl.model.ops import Array
from refimpl.model.weight import OWN_TENSOR, STORED_DTYPES, Layout, extract, paste

DTYPE_NAMES = st.sampled_from(sorted(STORED_DTYPES))


def random_bytes(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> Array:
    """Any bit pattern, NaN payloads and negative zeros included."""
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(count), dtype).reshape(shape)


def contents(array: Array) -> tuple[Any, ...]:
    return array.dtype, array.shape, array.tobytes()


@st.composite
def fusions(draw: st.DrawFn) -> tuple[list[Layout], tuple[int, ...]]:
    """Layouts of all roles that share a tensor, and the tensor's shape."""
    groups, roles = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    runs = draw(st.lists(st.integers(1, 7), min_size=roles, max_size=roles))
    rows = tuple(groups * run for run in runs)
    bias = draw(st.booleans())
    transposed = not bias and draw(st.booleans())
    shape: tuple[int, ...] = (
        (sum(rows),) if bias else (sum(rows), draw(st.integers(1, 6)))
    )
    layouts = [Layout(rows, i, groups, transposed) for i in range(roles)]
    return layouts, shape[::-1] if transposed else shape


@given(fusions(), DTYPE_NAMES, seeds, st.integers(0, 3))
def test_cut_and_paste_undo_each_other(
    fusion: tuple[list[Layout], tuple[int, ...]], dtype: str, seed: int, experts: int
) -> None:
    layouts, shape = fusion
    shapes = [
        (rows,)
        if len(shape) == 1
        else (rows, shape[0] if layouts[0].transposed else shape[-1])
        for rows in layouts[0].rows
    ]
    layouts = [
        replace(x, stack=experts, expert=e)
        for e in range(max(1, experts))
        for x in layouts
    ]
    stack = (experts, *shape) if experts else shape
    stored = random_bytes(stack, STORED_DTYPES[dtype], seed)
    assert np.shares_memory(extract(stored, OWN_TENSOR), stored)
    parts = [extract(stored, layout) for layout in layouts]
    assert [part.shape for part in parts] == shapes * max(1, experts)
    copy = random_bytes(stack, STORED_DTYPES[dtype], seed + 1).copy()
    for i, (layout, part) in enumerate(zip(layouts, parts, strict=True)):
        before = [contents(extract(copy, other)) for other in layouts]
        paste(copy, part, layout)
        after = [contents(extract(copy, other)) for other in layouts]
        assert after == [*before[:i], contents(part), *before[i + 1 :]]
    assert contents(copy) == contents(stored)


def unaligned(array: Array) -> Array:
    raw = np.zeros(array.nbytes + 1, np.uint8)[1:]
    raw[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return raw.view(array.dtype).reshape(array.shape)


STRIDES: dict[str, Callable[[Array], Array]] = {
    "contiguous": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "backwards": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "backwards in all": lambda a: np.flip(np.ascontiguousarray(np.flip(a))),
    "unaligned": unaligned,
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}


WRITABLE = [
    *STORED_DTYPES.values(),
    *map(np.dtype, ("i8", "u8", "i4", "u4", "i2", "u2", "i1", "u1", "?")),
]
ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__"),
    st.tuples(
        st.sampled_from(WRITABLE),
        st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple),
        st.sampled_from(sorted(STRIDES)),
        seeds,
    ),
    max_size=5,
)


def read_by_hand(path: Path) -> dict[str, Array]:
    """Every tensor of a file, from the format's description alone."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    dtypes = dict(STORED_DTYPES) | {"BOOL": np.dtype(bool)}
    integers = [f"{kind}{n}" for kind in "iu" for n in (1, 2, 4, 8)]
    dtypes |= {
        f"{name[0].upper()}{8 * int(name[1])}": np.dtype(name) for name in integers
    }
    arrays = {}
    for name, entry in header.items():
        data = raw[8 + length :][slice(*entry["data_offsets"])]
        arrays[name] = np.frombuffer(data, dtypes[entry["dtype"]]).reshape(
            entry["shape"]
        )
    return arrays


@given(ARRAYS)
def test_arrays_of_any_strides_are_written_and_read_unchanged(
    scratch: Path, plan: dict[str, Any]
) -> None:
    """The library silently writes other bytes for arrays that are not contiguous."""
    path = scratch / "any.safetensors"
    arrays = {
        name: STRIDES[strides](random_bytes(shape, dtype, seed).astype(dtype))
        for name, (dtype, shape, strides, seed) in plan.items()
    }
    path.unlink(missing_ok=True)  # the arrays of an example may be mapped
    write_arrays(path, arrays)
    by_hand, file = read_by_hand(path), SafetensorsFile(path)
    assert by_hand.keys() == file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert contents(by_hand[name]) == contents(array)
        if file.tensors[name].dtype in STORED_DTYPES:
            assert contents(file.tensors[name].array) == contents(array)


def test_a_mapped_file_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"x": np.arange(5.0)})
    before = SafetensorsFile(path).tensors["x"].array
    save_tensors(path, {"x": before[::-1]})
    assert before.tolist() == [0, 1, 2, 3, 4]
    assert SafetensorsFile(path).tensors["x"].array.tolist() == [4, 3, 2, 1, 0]
