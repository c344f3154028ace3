"""Ids from files and drawn at random, and what a model refuses of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import model_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from program import suggested
from refusals import refusal_of

from refimpl.errors import RefimplError
from refimpl.loading.samples import id_tokens, random_tokens
from refimpl.loading.text import text_tokens
from refimpl.model.state import checked_ids

dtypes = st.sampled_from(["<i8", ">i8", "<i4", ">i4", "<i2", "u1", "<u2", "<u4", "<u8"])
sizes = st.integers(1, 12)


def npy(path: Path, ids: Any) -> Path:
    np.save(path, ids)
    return path


@given(dtypes, sizes, sizes, st.sampled_from("CF"), st.data())
def test_rows_of_an_array_are_its_samples(
    scratch: Path, dtype: str, rows: int, width: int, order: Any, data: st.DataObject
) -> None:
    stored = np.arange(rows * width).astype(dtype).reshape(rows, width)
    path = npy(scratch / "a.npy", np.array(stored, order=order))
    n, s = data.draw(st.integers(1, rows)), data.draw(st.integers(1, width))
    whole, part = id_tokens(path), id_tokens(path, n, s)
    assert whole.ids.tolist() == stored.tolist()
    assert part.ids.tolist() == stored[:n, :s].tolist()
    for tokens in (whole, part):
        assert type(tokens.ids) is np.ndarray  # and no window into the file
        assert tokens.ids.dtype == np.dtype("=i8")
        assert tokens.ids.flags.c_contiguous
        assert (tokens.kind, tokens.bos) == ("ids", None)
    assert (
        part.source == f"a.npy, {n} of {rows} rows, {s} of {width} ids each, as given"
    )
    caught = refusal_of(id_tokens, path, rows + 1, s, says="rows of")
    assert id_tokens(path, *suggested(caught, "samples"), s).ids.shape == (rows, s)
    caught = refusal_of(id_tokens, path, n, width + 1, says="rows of")
    assert id_tokens(path, n, *suggested(caught, "seq-len")).ids.shape == (n, width)


def test_one_dimension_is_cut_like_a_text(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", np.arange(5000, dtype=np.uint16))
    assert id_tokens(path).ids.shape == (8, 512)
    tokens = id_tokens(path, 2, 3)
    assert tokens.ids.tolist() == [[0, 1, 2], [4997, 4998, 4999]]
    assert (
        tokens.source == "a.npy, 2 samples of 3 tokens spread over 5,000, ids as given"
    )
    assert id_tokens(path, samples=1).ids.shape == (1, 512)
    assert "a.npy, 1 sample of 512 tokens" in id_tokens(path, samples=1).source
    assert id_tokens(path, seq_len=7).ids.shape == (8, 7)
    caught = refusal_of(id_tokens, path, seq_len=1000, says="has 5000 tokens")
    assert suggested(caught, "seq-len") == [625]
    assert suggested(caught, "samples") == [5]


OTHER_ARRAYS = r"a\.npy contains .* of shape"
ARRAYS: dict[str, tuple[Any, str]] = {
    "float64": (np.ones((2, 3)), OTHER_ARRAYS),
    "bool": (np.ones((2, 3), np.bool_), OTHER_ARRAYS),
    "str": (np.array(["1", "2"]), OTHER_ARRAYS),
    "records": (np.zeros(3, [("a", int)]), OTHER_ARRAYS),
    "a scalar": (np.array(3), OTHER_ARRAYS),
    "three axes": (np.zeros((1, 2, 3), int), OTHER_ARRAYS),
    "a pickle": (np.array([1, "a"], object), "is not an array of integers"),
    "beyond 64 bits": (np.array([[1, 2**64 - 1]], np.uint64), str(2**64 - 1)),
    "no rows": (np.zeros((0, 3), int), OTHER_ARRAYS),
    "empty rows": (np.zeros((3, 0), int), OTHER_ARRAYS),
    "nothing": (np.zeros(0, int), "has 0 tokens"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_no_ids_are_refused(tmp_path: Path, name: str) -> None:
    array, problem = ARRAYS[name]
    with pytest.raises(RefimplError, match=problem):
        id_tokens(npy(tmp_path / "a.npy", array))


HEADER = b"\x93NUMPY\x01\x00"


@given(
    st.one_of(
        st.binary(max_size=200), st.binary(max_size=200).map(lambda b: HEADER + b)
    )
)
def test_garbage_is_refused(scratch: Path, content: bytes) -> None:
    (scratch / "garbage.npy").write_bytes(content)
    refusal_of(id_tokens, scratch / "garbage.npy", says="garbage.npy")


@given(st.data())
def test_damaged_arrays_are_refused_or_read(scratch: Path, data: st.DataObject) -> None:
    path = npy(scratch / "damaged.npy", np.arange(6).reshape(2, 3))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 127))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        tokens = id_tokens(path, 1, 1)
    except RefimplError:
        return
    assert tokens.ids.shape == (1, 1)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", np.arange(3))
    (tmp_path / "a.npz").rename(tmp_path / "zip.npy")
    problems = {"zip.npy": r"zip\.npy is not an array", "a.txt": r"a \.npy file"}
    (tmp_path / "folder.npy").mkdir()
    problems["folder.npy"] = "is not a regular file"
    problems["absent.npy"] = r"absent\.npy: cannot be read \(No such file"
    for name, problem in problems.items():
        with pytest.raises(RefimplError, match=problem):
            id_tokens(tmp_path / name)


@given(st.integers(1, 2**40), sizes, sizes, st.integers(0, 2**64))
def test_random_ids_are_in_the_vocabulary_and_seeded(
    vocab_size: int, samples: int, seq_len: int, seed: int
) -> None:
    tokens = random_tokens(vocab_size, samples, seq_len, seed)
    assert tokens.ids.shape == (samples, seq_len)
    assert tokens.ids.dtype == np.int64
    assert tokens.ids.min() >= 0
    assert tokens.ids.max() < vocab_size
    again = random_tokens(vocab_size, samples + 1, seq_len, seed)
    assert (
        again.ids[:samples].tolist() == tokens.ids.tolist()
    )  # more samples change none
    assert (tokens.kind, tokens.bos) == ("random", None)


def test_random_ids_are_uniform_and_say_that_there_was_no_text() -> None:
    tokens = random_tokens(16, 64, 1024, 3)
    counts = np.bincount(tokens.ids.ravel(), minlength=16)
    assert counts.size == 16
    assert (
        np.sum((counts - 4096.0) ** 2 / 4096) < 45
    )  # chi squared, 15 degrees: p = 1e-4
    assert tokens.ids.tolist() != random_tokens(16, 64, 1024, 4).ids.tolist()
    assert random_tokens(49152, 1, 4, 0).ids.tolist() == [[6666, 691, 46091, 12669]]
    assert (
        tokens.source == "drawn uniformly from 16 ids with seed 3 (no text was given)"
    )


def test_random_ids_need_a_seed_and_a_vocabulary() -> None:
    refusal_of(random_tokens, 10, 1, 1, -1, says="seed")
    refusal_of(random_tokens, 0, 1, 1, 0, says="vocab-size 0")


@pytest.mark.parametrize(("samples", "seq_len"), [(0, 4), (4, 0), (-1, 4), (4, -1)])
def test_no_samples_or_empty_ones_are_refused(
    tmp_path: Path, samples: int, seq_len: int
) -> None:
    flat = npy(tmp_path / "a.npy", np.arange(99))
    rows = npy(tmp_path / "b.npy", np.eye(9, dtype=int))
    text, tokenizer = FIXTURES / "text.txt", FIXTURES / "llama" / "tokenizer.json"
    for make in (
        lambda: text_tokens(text, tokenizer, samples, seq_len),
        lambda: id_tokens(flat, samples, seq_len),
        lambda: id_tokens(rows, samples, seq_len),
        lambda: random_tokens(10, samples, seq_len),
    ):
        refusal_of(make, says="a whole number from 1 to")


@given(sizes, sizes, st.data())
def test_ids_outside_the_vocabulary_are_counted_and_the_first_is_named(
    samples: int, seq_len: int, data: st.DataObject
) -> None:
    ids = data.draw(
        hnp.arrays(np.int64, (samples, seq_len), elements=st.integers(-3, 12))
    )
    config = replace(
        model_of("llama").config, vocab_size=10, max_position_embeddings=seq_len
    )
    wrong = [
        (i, j)
        for i in range(samples)
        for j in range(seq_len)
        if not 0 <= ids[i, j] < 10
    ]
    if not wrong:
        assert checked_ids(ids, config).tolist() == ids.tolist()
        return
    i, j = wrong[0]
    caught = refusal_of(checked_ids, ids, config)
    assert caught.problem == (
        f"{len(wrong)} token ids are outside the vocabulary; the first is {ids[i, j]} "
        f"(sample {i}, position {j})"
    )
    assert caught.expected == "ids from 0 to 9"
