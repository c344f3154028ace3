"""The cache gives the ids that the tokenizer gives, or is not used; it never refuses a text."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from hypothesis import given
from hypothesis import strategies as st
from program import run

from refimpl.tokens import Tokens, text_tokens
from refimpl.tokens.token_cache import TEXTS, Encoded, cached_ids, token_cache_folder
from refimpl.tokens.tokenizer import TextTokenizer

MODEL, TEXT = FIXTURES / "llama", FIXTURES / "text.txt"


@pytest.fixture(autouse=True)
def every_text_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.tokens.text.CACHED", 0)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that the tokenizer encodes."""
    texts, encode = list[str](), TextTokenizer.encode
    monkeypatch.setattr(
        TextTokenizer, "encode", lambda self, text, *rest: texts.append(text) or encode(self, text)
    )
    return texts


def tokens(cache: Path | None, text: Path = TEXT, tokenizer: Path = MODEL) -> Tokens:
    return text_tokens(text, tokenizer / "tokenizer.json", 8, 32, cache=cache)


class Encoder:
    """In place of a tokenizer: reads a text and gives these ids, and the ids before it."""

    def __init__(self, *ids: int, front: tuple[int, ...] = ()) -> None:
        self.ids, self.front, self.texts = np.array(ids, np.int32), front, list[str]()

    def __call__(self, chunks: Iterator[str]) -> Encoded:
        self.texts.append("".join(chunks))
        return self.ids, self.front

    def cached(self, folder: Path, *texts: str) -> tuple[list[int], tuple[int, ...]]:
        """What the cache gives for a text, each time that it is read."""
        reads = iter(texts * 2)
        ids, front = cached_ids(folder, "", lambda: iter([next(reads)]), self)
        return ids.tolist(), front


def same(one: Tokens, other: Tokens) -> bool:
    return np.array_equal(one.ids, other.ids) and (one.source, one.bos) == (other.source, other.bos)


def test_a_text_is_encoded_once(encoded: list[str], tmp_path: Path) -> None:
    uncached = tokens(None)
    assert not any(tmp_path.iterdir())
    cache, count = tmp_path / "new" / "cache", len(encoded)
    first = tokens(cache)
    assert len(encoded) == 2 * count
    second = tokens(cache)
    assert len(encoded) == 2 * count
    assert same(uncached, first)
    assert same(uncached, second)
    (file,) = cache.iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, file)] == [0o700, 0o600]


def test_ids_before_a_text_are_kept(tmp_path: Path) -> None:
    encoder = Encoder(0, 1, 2, 3, 4, front=(7, 9))
    for _ in range(2):
        assert encoder.cached(tmp_path, "a") == ([0, 1, 2, 3, 4], (7, 9))
    assert encoder.texts == ["a"]


def test_another_text_tokenizer_or_version_is_encoded_again(
    encoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, text, model = tmp_path / "cache", tmp_path / "text.txt", tmp_path / "model"
    model.mkdir()
    tokenizer = (MODEL / "tokenizer.json").read_text()
    text.write_text(TEXT.read_text())
    (model / "tokenizer.json").write_text(tokenizer)
    tokens(cache, text, model)
    for change in (
        lambda: text.write_text(TEXT.read_text() + "a"),
        lambda: (model / "tokenizer.json").write_text(tokenizer + " "),
        lambda: monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 99"),
    ):
        count = len(encoded)
        change()
        tokens(cache, text, model)
        assert len(encoded) > count
    assert len(list(cache.iterdir())) == 4


def test_ids_are_kept_for_the_text_that_was_encoded(tmp_path: Path) -> None:
    assert Encoder(1).cached(tmp_path, "before", "after") == ([1], ())
    assert Encoder(2).cached(tmp_path, "after") == ([1], ())
    assert Encoder(3).cached(tmp_path, "before") == ([3], ())


@given(st.data())
def test_a_damaged_file_is_not_used(scratch: Path, data: st.DataObject) -> None:
    cache = scratch / "token-cache"
    Encoder(*range(9), front=(1,)).cached(cache, "a")
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= data.draw(st.integers(1, 255))
    else:
        del content[place:]
    file.write_bytes(content)
    assert Encoder(8).cached(cache, "a") == ([8], ())
    assert Encoder(9).cached(cache, "a") == ([8], ())
    file.unlink()


def test_a_cache_that_cannot_be_written_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file of the user")
    assert same(tokens(tmp_path / "file"), tokens(None))
    assert same(tokens(tmp_path / "file" / "below"), tokens(None))
    assert (tmp_path / "file").read_text() == "a file of the user"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_texts_used_last_are_kept(tmp_path: Path) -> None:
    def use(number: int) -> None:
        Encoder(number).cached(tmp_path, str(number))
        for file in tmp_path.iterdir():  # the clock of a file system is coarse
            when = file.stat().st_mtime
            os.utime(file, (when - 10, when - 10))

    for number in range(TEXTS):
        use(number)
    use(0)
    use(TEXTS)
    kept = {int(np.frombuffer(file.read_bytes(), "<i4")[-1]) for file in tmp_path.iterdir()}
    assert kept == {0, *range(2, TEXTS + 1)}


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variables, expected in (
        ({"REFIMPL_CACHE": ""}, None),
        ({"REFIMPL_CACHE": "here", "XDG_CACHE_HOME": "/other"}, Path("here")),
        ({"XDG_CACHE_HOME": "/other", "HOME": "/home/me"}, Path("/other/refimpl")),
        ({"HOME": "/home/me"}, Path("/home/me/.cache/refimpl")),
    ):
        for name in ("REFIMPL_CACHE", "XDG_CACHE_HOME", "HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert token_cache_folder() == expected


def test_commands_use_it(
    encoded: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REFIMPL_CACHE", str(tmp_path / "cache"))
    outputs = [
        run("score", MODEL, "--text", TEXT, "--samples", 2, "--seq-len", 32).out for _ in range(2)
    ]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert outputs[0] == outputs[1]
