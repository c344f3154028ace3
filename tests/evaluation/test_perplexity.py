"""Windows of a text, and perplexity on them against a plain softmax over the whole model."""

import json
from dataclasses import replace
from functools import partial
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import bits, model_of
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from scipy.special import log_softmax
from tokenizers import Tokenizer

from refimpl import forward
from refimpl.evaluation.evaluate import evaluate, evaluation_document
from refimpl.evaluation.likelihood import Perplexity
from refimpl.loading.samples import Windows, id_windows
from refimpl.loading.text import byte_offsets, encoded_pieces, text_windows
from refimpl.show.models import evaluation_table

LLAMA = FIXTURES / "llama"
TOKENIZER = LLAMA / "tokenizer.json"
WORDS = "être or not – 😀 to be. "


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 5, "utf-8")
    return path


def perplexity_of(case: str, windows: Windows) -> Perplexity:
    return evaluate(model_of(case), windows, dtype="float64").perplexity


def plain_encoding() -> Any:
    return Tokenizer.from_file(str(TOKENIZER)).encode(
        WORDS * 5, add_special_tokens=False
    )


def test_a_text_in_windows(text: Path) -> None:
    windows = text_windows(text, TOKENIZER, window=17)
    found, nats = perplexity_of("llama", windows), list[float]()
    for ids in windows.ids:
        p = log_softmax(
            forward(model_of("llama"), ids, dtype="f8").logits[0, :-1], axis=-1
        )
        nats.append(-float(p[np.arange(len(ids) - 1), ids[1:]].sum()))
    tokens = [len(ids) - 1 for ids in windows.ids]
    assert [len(ids) for ids in windows.ids[:-1]] == [17] * (len(windows.ids) - 1)
    assert 2 <= len(windows.ids[-1]) < 17
    assert found.tokens.tolist() == tokens
    np.testing.assert_allclose(found.nats, nats, rtol=1e-12)
    mean = sum(nats) / sum(tokens)
    assert found.value == pytest.approx(exp(mean))
    count = len(nats)
    rest = sum((a - mean * n) ** 2 for a, n in zip(nats, tokens, strict=True))
    assert found.stderr == pytest.approx(
        exp(mean) * sqrt(count / (count - 1) * rest) / sum(tokens)
    )
    assert found.bits_per_byte == pytest.approx(
        sum(nats) / log(2) / text.stat().st_size
    )


def test_windows_are_consecutive_and_begin_with_bos(text: Path) -> None:
    windows = text_windows(text, TOKENIZER, window=9)
    assert {ids[0] for ids in windows.ids} == {windows.bos} == {1}
    assert [i for ids in windows.ids for i in ids[1:]] == plain_encoding().ids
    assert windows.bytes is not None
    assert (
        sum(windows.bytes) == text.stat().st_size
    )  # with BOS every token is predicted
    first = text_windows(text, TOKENIZER, window=9, count=3)
    assert [ids.tolist() for ids in first.ids] == [
        ids.tolist() for ids in windows.ids[:3]
    ]
    assert first.bytes == windows.bytes[:3]
    assert (
        first.source == "text.txt, 3 windows of 9 tokens, BOS 1 added by tokenizer.json"
    )
    assert first.sha256 != windows.sha256


@pytest.mark.parametrize("count", [None, 3])
def test_pieces_of_a_text_change_nothing(
    text: Path, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = text_windows(text, TOKENIZER, 9, count)
    pieces = partial(encoded_pieces, size=10)
    monkeypatch.setattr("refimpl.loading.text.encoded_pieces", pieces)
    pieced = text_windows(text, TOKENIZER, 9, count)
    assert bits(pieced) == bits(whole)


def test_without_bos_first_tokens_of_windows_are_not_predicted(
    text: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"add_bos_token": False})
    )
    windows = text_windows(text, tmp_path / "tokenizer.json", window=7)
    encoding, stream = plain_encoding(), [i for ids in windows.ids for i in ids]
    assert stream == encoding.ids[: len(stream)]
    assert len(encoding.ids) - len(stream) in (0, 1)  # one alone predicts nothing
    places = [len((WORDS * 5)[:a].encode()) for a, _ in encoding.offsets]
    places.append(text.stat().st_size)
    ends = np.cumsum([len(ids) for ids in windows.ids])
    starts = [0, *ends[:-1]]
    expected = [places[b] - places[a + 1] for a, b in zip(starts, ends, strict=True)]
    assert windows.bytes == tuple(expected)


@given(st.text(max_size=30))
def test_byte_offsets_are_those_of_utf8(words: str) -> None:
    words = words.encode("utf-8", "ignore").decode()
    assert byte_offsets(words).tolist() == [
        len(words[:i].encode()) for i in range(len(words) + 1)
    ]


def test_ids_as_windows(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(12).reshape(3, 4).astype("u2"))
    np.save(tmp_path / "row.npy", np.arange(10))
    rows = id_windows(tmp_path / "rows.npy", count=2)
    assert [ids.tolist() for ids in rows.ids] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (rows.bytes, rows.bos, rows.window) == (None, None, 4)
    cut = id_windows(tmp_path / "rows.npy", window=3)
    assert [ids.tolist() for ids in cut.ids] == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
    row = id_windows(tmp_path / "row.npy", window=4)
    assert [ids.tolist() for ids in row.ids] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert row.source == "row.npy, 3 windows of 4 tokens (the last of 2), ids as given"
    assert {ids.dtype for ids in (*rows.ids, *row.ids)} == {np.dtype(np.int64)}


def test_windows_that_cannot_be(text: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.arange(12).reshape(3, 4))
    np.save(tmp_path / "one.npy", np.arange(1))
    cases = [
        (lambda: text_windows(text, TOKENIZER, 1), "window 1"),
        (lambda: text_windows(text, TOKENIZER, 9, 0), "windows 0"),
        (lambda: text_windows(text, TOKENIZER, 60, 90), "use --windows 3"),
        (lambda: id_windows(tmp_path / "rows.npy", 5), "3 rows of 4 ids"),
        (lambda: id_windows(tmp_path / "rows.npy", 4, 4), "at least 4 rows of 4"),
        (lambda: id_windows(tmp_path / "one.npy"), "1 tokens, enough for 0 windows"),
        (lambda: id_windows(tmp_path / "no.npy"), "No such file"),
        (lambda: id_windows(text), "a .npy file"),
        (lambda: text_windows(tmp_path / "no.txt", TOKENIZER), "No such file"),
        (lambda: text_windows(text, tmp_path / "tokenizer.json"), "no tokenizer at"),
    ]
    for make, problem in cases:
        refusal_of(make, says=problem)
    windows = text_windows(text, TOKENIZER, 9)
    refusal_of(
        evaluate, model_of("llama"), windows, dtype="float16", says="float32 or float64"
    )


def test_a_model_beyond_float64_has_a_table_and_a_document(text: Path) -> None:
    """At 800 nats per token, exp(m) overflows."""
    right = evaluate(
        model_of("llama"), text_windows(text, TOKENIZER, 17), dtype="float64"
    )
    huge = Perplexity(
        800.0 * right.perplexity.tokens, right.perplexity.tokens, right.perplexity.bytes
    )
    found = replace(right, perplexity=huge)
    assert "800.00000" in evaluation_table(found)
    assert "exceeds float64" in evaluation_table(found)
    document = evaluation_document(found)["text"]
    assert (document["perplexity"], document["nats_per_token"]) == (None, 800)
