"""Samples are pieces of the text in order, errors give numbers that work, nothing is made up."""

import hashlib
import itertools
import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from refimpl.errors import RefimplError
from refimpl.model.config import BlockKind, Config
from refimpl.model.token_ids import checked_ids
from refimpl.tokens import id_tokens, random_tokens, text_tokens
from refimpl.tokens.samples import cut
from refimpl.tokens.text import pieces

BOS, EOS = 256, 257
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
)


def byte_tokenizer(post_processor: Any = None) -> Tokenizer:
    """Byte-level BPE without merges: 256 bytes, then <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return tokenizer


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write a tokenizer with its settings into a folder, in the layout of a model."""

    def write(post_processor: Any = None, **files: dict[str, Any]) -> Path:
        byte_tokenizer(post_processor).save(str(tmp_path / "tokenizer.json"))
        for name, settings in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(settings))
        return tmp_path / "tokenizer.json"

    return write


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes("Entia non sunt multiplicanda – praeter necessitatem.\r\n".encode() * 3)
    return path


def plain_ids(path: Path) -> list[int]:
    return byte_tokenizer().encode(path.read_bytes().decode(), add_special_tokens=False).ids


# ---- cutting -----------------------------------------------------------------------------------

sizes = st.integers(1, 12)
bos_ids = st.sampled_from([None, 10**6])


@given(sizes, sizes, st.integers(0, 200), bos_ids)
def test_samples_are_pieces_of_the_stream_in_order(
    samples: int, body: int, spare: int, bos: int | None
) -> None:
    total = samples * body + spare
    extra = int(bos is not None)
    ids = cut(np.arange(total), samples, body + extra, bos, "stream")
    assert ids.shape == (samples, body + extra)
    assert ids.dtype == np.int64
    assert ids.flags.c_contiguous
    assert (ids[:, :extra] == 10**6).all()
    pieces = ids[:, extra:]
    starts = pieces[:, 0]
    assert (pieces == starts[:, None] + np.arange(body)).all()  # the id is its place in the stream
    assert (np.diff(starts) >= body).all()  # in order, and nothing twice
    assert starts[0] == 0
    assert samples == 1 or pieces[-1, -1] == total - 1
    assert samples < 3 or np.ptp(np.diff(starts)) <= 1  # evenly


def numbers(error: RefimplError, name: str) -> list[int]:
    return [int(n) for n in re.findall(rf"--{name} (\d+)", error.remedy)]


@given(st.integers(1, 40), st.integers(2, 40), st.integers(1, 300), bos_ids)
def test_numbers_in_the_error_work_and_are_the_largest(
    samples: int, seq_len: int, total: int, bos: int | None
) -> None:
    stream, extra = np.arange(total), int(bos is not None)
    if samples * (seq_len - extra) <= total:
        assert cut(stream, samples, seq_len, bos, "stream").shape == (samples, seq_len)
        return
    with pytest.raises(RefimplError, match=f"has {total} tokens") as caught:
        cut(stream, samples, seq_len, bos, "stream")
    lengths, counts = numbers(caught.value, "seq-len"), numbers(caught.value, "samples")
    assert lengths or counts
    if " or " not in caught.value.remedy and lengths and counts:  # neither alone is enough
        assert total < samples
        assert total < seq_len - extra
        assert cut(stream, counts[0], lengths[0], bos, "stream").shape == (1, total + extra)
        return
    for longest in lengths:
        assert cut(stream, samples, longest, bos, "stream").shape == (samples, longest)
        with pytest.raises(RefimplError):
            cut(stream, samples, longest + 1, bos, "stream")
    for most in counts:
        assert cut(stream, most, seq_len, bos, "stream").shape == (most, seq_len)
        with pytest.raises(RefimplError):
            cut(stream, most + 1, seq_len, bos, "stream")
    assert bool(lengths) == (total >= samples)
    assert bool(counts) == (total >= seq_len - extra)


# ---- text --------------------------------------------------------------------------------------


def test_text_is_cut_over_its_whole_length(text: Path, save: Callable[..., Path]) -> None:
    ids = plain_ids(text)
    tokens = text_tokens(text, save(), 4, 10)
    assert tokens.ids.shape == (4, 10)
    assert tokens.ids[0].tolist() == ids[:10]
    assert tokens.ids[-1].tolist() == ids[-10:]
    assert (tokens.kind, tokens.bos) == ("text", None)
    assert tokens.source == (
        f"text.txt, 4 samples of 10 tokens spread over {len(ids)}, no BOS asked for"
    )


def test_hash_is_of_little_endian_int64(text: Path, save: Callable[..., Path]) -> None:
    tokens = text_tokens(text, save(), 2, 3)
    flat = tokens.ids.ravel().tolist()
    assert tokens.sha256 == hashlib.sha256(struct.pack("<6q", *flat)).hexdigest()


ROBERTA = processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS))
LLAMA3 = processors.Sequence([processors.ByteLevel(trim_offsets=False), TEMPLATE])


@pytest.mark.parametrize("post_processor", [TEMPLATE, ROBERTA, LLAMA3])
@pytest.mark.parametrize("config", [{}, {"add_bos_token": None}, {"add_bos_token": True}])
def test_bos_of_the_post_processor_begins_every_sample(
    text: Path, save: Callable[..., Path], post_processor: Any, config: dict[str, Any]
) -> None:
    tokens = text_tokens(text, save(post_processor, tokenizer_config=config), 3, 8, bos_id=7)
    ids = plain_ids(text)
    assert tokens.bos == BOS
    assert (tokens.ids[:, 0] == BOS).all()
    assert tokens.ids[0, 1:].tolist() == ids[:7]
    assert tokens.ids[2, 1:].tolist() == ids[-7:]  # and no </s> at the end of the stream
    assert tokens.source.endswith(f"over {len(ids)}, BOS {BOS} added by tokenizer.json")


ADDED_TOKEN = {"__type": "AddedToken", "content": "<s>", "lstrip": False, "special": True}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"add_bos_token": True, "bos_token": "<s>"}},
        {"tokenizer_config": {"add_bos_token": True, "bos_token": ADDED_TOKEN}},
        {
            "tokenizer_config": {"add_bos_token": True, "bos_token": None},
            "special_tokens_map": {"bos_token": "<s>"},
        },
        {
            "tokenizer_config": {"add_bos_token": True},
            "special_tokens_map": {"bos_token": ADDED_TOKEN},
        },
    ],
)
def test_bos_that_the_settings_ask_for_is_found_by_name(
    text: Path, save: Callable[..., Path], files: dict[str, Any]
) -> None:
    post_processor = processors.ByteLevel(trim_offsets=False)
    tokens = text_tokens(text, save(post_processor, **files), 3, 8, bos_id=7)
    assert tokens.bos == BOS
    assert (tokens.ids[:, 0] == BOS).all()
    assert tokens.source.endswith(f"BOS {BOS} asked for by tokenizer_config.json")


def test_bos_falls_back_to_the_config_of_the_model(text: Path, save: Callable[..., Path]) -> None:
    model = save(tokenizer_config={"add_bos_token": True, "bos_token": "<not in vocabulary>"})
    tokens = text_tokens(text, model, 3, 8, bos_id=0)
    assert tokens.bos == 0
    assert tokens.source.endswith("BOS 0 (from config.json) asked for by tokenizer_config.json")
    with pytest.raises(RefimplError, match="which token is BOS"):
        text_tokens(text, model, 3, 8)


def test_false_forbids_bos(text: Path, save: Callable[..., Path]) -> None:
    model = save(TEMPLATE, tokenizer_config={"add_bos_token": False, "bos_token": "<s>"})
    tokens = text_tokens(text, model, 3, 8, bos_id=BOS)
    assert tokens.bos is None
    assert tokens.ids[0].tolist() == plain_ids(text)[:8]
    assert "no BOS (add_bos_token is false" in tokens.source


def test_bos_named_but_not_asked_for_is_not_added(text: Path, save: Callable[..., Path]) -> None:
    model = save(tokenizer_config={"bos_token": "<s>"})
    assert text_tokens(text, model, 3, 8, bos_id=BOS).bos is None


def test_truncation_and_padding_in_the_file_do_not_shorten_the_text(
    text: Path, tmp_path: Path
) -> None:
    tokenizer = byte_tokenizer(TEMPLATE)
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(direction="left", length=1000)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = plain_ids(text)
    tokens = text_tokens(text, tmp_path / "tokenizer.json", 1, len(ids) + 1)
    assert tokens.ids.tolist() == [[BOS, *ids]]


def test_byte_order_mark_is_no_text(text: Path, save: Callable[..., Path]) -> None:
    model, ids = save(), plain_ids(text)
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    assert text_tokens(text, model, 1, 5).ids.tolist() == [ids[:5]]


def test_too_short_a_text_says_what_would_do(text: Path, save: Callable[..., Path]) -> None:
    model, total = save(TEMPLATE), len(plain_ids(text))
    with pytest.raises(
        RefimplError, match=rf"text\.txt has {total} tokens.*BOS included"
    ) as caught:
        text_tokens(text, model, 4, 100)
    assert text_tokens(text, model, 4, numbers(caught.value, "seq-len")[0]).ids.shape[0] == 4
    assert text_tokens(text, model, numbers(caught.value, "samples")[0], 100).ids.shape[1] == 100


def test_sample_of_bos_alone_is_refused(text: Path, save: Callable[..., Path]) -> None:
    with pytest.raises(RefimplError, match="which is BOS"):
        text_tokens(text, save(TEMPLATE), 4, 1)


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b"\xef\xbb\xbf"])
def test_empty_text_is_refused(text: Path, save: Callable[..., Path], content: bytes) -> None:
    text.write_bytes(content)
    with pytest.raises(RefimplError, match=r"text\.txt is empty"):
        text_tokens(text, save(), 1, 1)


def test_text_without_a_token_is_refused(text: Path, tmp_path: Path) -> None:
    Tokenizer(models.BPE({"§": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(RefimplError, match=r"has 0 tokens[^§]*a longer text"):
        text_tokens(text, tmp_path / "tokenizer.json", 1, 1)


def test_text_that_is_not_utf8_is_refused(text: Path, save: Callable[..., Path]) -> None:
    text.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(RefimplError, match=r"not UTF-8 \(byte 2\)"):
        text_tokens(text, save(), 1, 1)


def test_files_that_cannot_be_read_are_refused(
    text: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save()
    with pytest.raises(RefimplError, match=r"absent\.txt: No such file"):
        text_tokens(text.with_name("absent.txt"), model)
    with pytest.raises(RefimplError, match="Is a directory"):
        text_tokens(text.parent, model)
    with pytest.raises(RefimplError, match=r"no tokenizer at(.|\n)*--tokens"):
        text_tokens(text, model.with_name("absent.json"))

    def forbidden(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(RefimplError, match=r"text\.txt: Permission denied"):
        text_tokens(text, model)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "is no tokenizer"),
        ("tokenizer.json", "{", "is no tokenizer"),
        ("tokenizer_config.json", "{", "is not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "is not JSON"),
        ("tokenizer_config.json", "[]", "no JSON object"),
        ("tokenizer_config.json", '{"add_bos_token": "yes"}', "add_bos_token 'yes'"),
    ],
)
def test_malformed_tokenizer_files_are_refused(
    text: Path, save: Callable[..., Path], name: str, content: str, message: str
) -> None:
    model = save()
    model.with_name(name).write_text(content)
    with pytest.raises(RefimplError, match=message):
        text_tokens(text, model, 1, 1)


def test_two_tokens_before_a_text_are_refused(text: Path, save: Callable[..., Path]) -> None:
    twice = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", BOS)])
    with pytest.raises(RefimplError, match="2 tokens put before a text"):
        text_tokens(text, save(twice), 1, 8)


def test_missing_library_says_how_to_install_it(
    text: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RefimplError, match=re.escape("pip install 'refimpl[text]'")):
        text_tokens(text, model)


@pytest.mark.torch
@pytest.mark.parametrize("post_processor", [None, TEMPLATE, ROBERTA, LLAMA3])
def test_transformers_agrees(text: Path, save: Callable[..., Path], post_processor: Any) -> None:
    from transformers import PreTrainedTokenizerFast

    model = save(post_processor)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(model), eos_token=AddedToken("</s>"))
    expected = [i for i in theirs(text.read_bytes().decode())["input_ids"] if i != EOS]
    assert text_tokens(text, model, 1, len(expected)).ids.tolist() == [expected]


# ---- ids ---------------------------------------------------------------------------------------

dtypes = st.sampled_from(["<i8", ">i8", "<i4", ">i4", "<i2", "u1", "<u2", "<u4", "<u8"])


def npy(path: Path, ids: Any) -> Path:
    np.save(path, ids)
    return path


def jsonl(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


@given(dtypes, sizes, sizes, st.booleans(), st.data())
def test_rows_of_an_array_are_its_samples(
    tmp_path_factory: pytest.TempPathFactory,
    dtype: str,
    rows: int,
    width: int,
    fortran: bool,
    data: st.DataObject,
) -> None:
    stored = np.arange(rows * width).astype(dtype).reshape(rows, width)
    path = npy(
        tmp_path_factory.getbasetemp() / "a.npy", np.asfortranarray(stored) if fortran else stored
    )
    n, s = data.draw(st.integers(1, rows)), data.draw(st.integers(1, width))
    whole, part = id_tokens(path), id_tokens(path, n, s)
    assert whole.ids.tolist() == stored.tolist()
    assert part.ids.tolist() == stored[:n, :s].tolist()
    for tokens in (whole, part):
        assert type(tokens.ids) is np.ndarray  # and no window into the file
        assert tokens.ids.dtype == np.dtype("=i8")
        assert tokens.ids.flags.c_contiguous
        assert (tokens.kind, tokens.bos) == ("ids", None)
    assert part.source == f"a.npy, {n} of {rows} rows, {s} of {width} ids each, as given"
    with pytest.raises(RefimplError, match="rows of") as caught:
        id_tokens(path, rows + 1, s)
    assert id_tokens(path, *numbers(caught.value, "samples"), s).ids.shape == (rows, s)
    with pytest.raises(RefimplError, match="rows of") as caught:
        id_tokens(path, n, width + 1)
    assert id_tokens(path, n, *numbers(caught.value, "seq-len")).ids.shape == (n, width)


def test_one_dimension_is_cut_like_a_text(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", np.arange(5000, dtype=np.uint16))
    assert id_tokens(path).ids.shape == (8, 512)
    tokens = id_tokens(path, 2, 3)
    assert tokens.ids.tolist() == [[0, 1, 2], [4997, 4998, 4999]]
    assert tokens.source == "a.npy, 2 samples of 3 tokens spread over 5,000, ids as given"
    assert id_tokens(path, samples=1).ids.shape == (1, 512)
    assert "a.npy, 1 sample of 512 tokens" in id_tokens(path, samples=1).source
    assert id_tokens(path, seq_len=7).ids.shape == (8, 7)
    with pytest.raises(RefimplError, match="has 5000 tokens") as caught:
        id_tokens(path, seq_len=1000)
    assert numbers(caught.value, "seq-len") == [625]
    assert numbers(caught.value, "samples") == [5]


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_lines_are_rows_in_any_of_their_spellings(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int, data: st.DataObject
) -> None:
    ids = st.integers(-(2**63) + 1, 2**63 - 1)
    stored = [data.draw(st.lists(ids, min_size=width, max_size=width)) for _ in range(rows)]
    spell = st.sampled_from(
        ["%s", '{"input_ids": %s, "text": "a\u2028b"}', '{"tokens": %s}', "\n  %s "]
    )
    lines = [data.draw(spell) % row for row in stored]
    path = tmp_path_factory.getbasetemp() / "a.jsonl"
    path.write_text("\n".join(lines) + data.draw(st.sampled_from(["", "\n", "\n\n"])), "utf-8")
    assert id_tokens(path).ids.tolist() == stored
    assert id_tokens(path, 1, 1).ids.tolist() == [stored[0][:1]]


def test_rows_of_unequal_length_are_refused_with_their_line(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", "[1, 2]", "", "[3, 4]", "[5]")
    with pytest.raises(RefimplError, match=r"a\.jsonl line 4 has 1 ids, .* have 2"):
        id_tokens(path)
    with pytest.raises(RefimplError, match="line 4"):  # also where only the first row is wanted
        id_tokens(path, 1, 1)


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2",
        "1 2",
        "nonsense",
        "3",
        "null",
        "[1.0, 2]",
        "[true, 2]",
        '["a", "b"]',
        "[[1], [2]]",
        "[1, NaN]",
        f"[1, {2**63}]",
        "[1, " + "9" * 5000 + "]",
        "[" * 100_000,
        '{"text": "a"}',
        '{"input_ids": "12"}',
        '{"tokens": ["a", "b"]}',
        "\udcff",
    ],
)
def test_lines_that_are_no_ids_are_refused_with_their_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"[1, 2]\n\n{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(RefimplError, match=r"a\.jsonl line 3"):
        id_tokens(path)


@pytest.mark.parametrize(
    "ids",
    [
        np.ones((2, 3)),
        np.ones((2, 3), np.float16),
        np.ones((2, 3), np.bool_),
        np.ones((2, 3), np.complex64),
        np.array(["1", "2"]),
        np.zeros((2, 3), "M8[s]"),
        np.zeros(3, [("a", int)]),
        np.array(3),
        np.zeros((1, 2, 3), int),
    ],
)
def test_arrays_that_are_no_ids_are_refused(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(RefimplError, match=r"a\.npy holds .* of shape"):
        id_tokens(npy(tmp_path / "a.npy", ids))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([1, "a"], object), allow_pickle=True)
    with pytest.raises(RefimplError, match="is no array of integers"):
        id_tokens(path)


def test_ids_beyond_64_bits_are_refused(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", np.array([[1, 2**64 - 1]], np.uint64))
    with pytest.raises(RefimplError, match=str(2**64 - 1)):
        id_tokens(path)


@pytest.mark.parametrize("ids", [np.zeros((0, 3), int), np.zeros((3, 0), int), np.zeros(0, int)])
def test_no_ids_are_refused(tmp_path: Path, ids: Any) -> None:
    with pytest.raises(RefimplError, match=r"no ids|has 0 tokens"):
        id_tokens(npy(tmp_path / "a.npy", ids))


@pytest.mark.parametrize("lines", [[], [""], ["", " "], ["[]"], ["[]", "[]"]])
def test_no_lines_are_refused(tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(RefimplError, match="holds no ids"):
        id_tokens(jsonl(tmp_path / "a.jsonl", *lines))


HEADER = b"\x93NUMPY\x01\x00"


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda b: HEADER + b)))
def test_garbage_is_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.npy"
    path.write_bytes(content)
    with pytest.raises(RefimplError, match=r"garbage\.npy"):
        id_tokens(path)


@given(st.data())
def test_damaged_arrays_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = npy(tmp_path_factory.getbasetemp() / "damaged.npy", np.arange(6).reshape(2, 3))
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
    with pytest.raises(RefimplError, match=r"zip\.npy is no array"):
        id_tokens(tmp_path / "zip.npy")
    with pytest.raises(RefimplError, match=r"a \.npy or a \.jsonl file"):
        id_tokens(tmp_path / "a.txt")
    for name in ("absent.npy", "absent.jsonl"):
        with pytest.raises(RefimplError, match=rf"{name}: No such file"):
            id_tokens(tmp_path / name)
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "folder.npy").mkdir()
    for name in ("folder.npy", "folder.jsonl"):
        with pytest.raises(RefimplError, match="Is a directory"):
            id_tokens(tmp_path / name)


def limits(max_positions: int, vocab_size: int = 10) -> Config:
    return Config(
        "none", vocab_size, 1, 1, 1, 1, 1, max_positions, "rms", 1.0, "silu", True, 1.0,
        (BlockKind(None, None),),
    )  # fmt: skip


# ---- random ------------------------------------------------------------------------------------


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
    assert again.ids[:samples].tolist() == tokens.ids.tolist()  # more samples change none
    assert (tokens.kind, tokens.bos) == ("random", None)


def test_random_ids_are_uniform_and_say_that_there_was_no_text() -> None:
    tokens = random_tokens(16, 64, 1024, 3)
    counts = np.bincount(tokens.ids.ravel(), minlength=16)
    assert counts.size == 16
    assert np.sum((counts - 4096.0) ** 2 / 4096) < 45  # chi squared, 15 degrees: p = 1e-4
    assert tokens.ids.tolist() != random_tokens(16, 64, 1024, 4).ids.tolist()
    assert tokens.source == "drawn uniformly from 16 ids with seed 3 (no text was given)"


def test_random_ids_of_a_seed_stay_the_same() -> None:
    assert random_tokens(49152, 1, 4, 0).ids.tolist() == [[6666, 691, 46091, 12669]]


@pytest.mark.parametrize(("vocab_size", "seed"), [(10, -1), (0, 0)])
def test_random_ids_need_a_seed_and_a_vocabulary(vocab_size: int, seed: int) -> None:
    with pytest.raises(RefimplError, match="seed"):
        random_tokens(vocab_size, 1, 1, seed)


# ---- sizes and checks --------------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "seq_len"), [(0, 4), (4, 0), (-1, 4), (4, -1)])
def test_no_samples_or_empty_ones_are_refused_everywhere(
    text: Path, save: Callable[..., Path], tmp_path: Path, samples: int, seq_len: int
) -> None:
    flat, rows = (
        npy(tmp_path / "a.npy", np.arange(99)),
        npy(tmp_path / "b.npy", np.eye(9, dtype=int)),
    )
    for make in (
        lambda: text_tokens(text, save(), samples, seq_len),
        lambda: id_tokens(flat, samples, seq_len),
        lambda: id_tokens(rows, samples, seq_len),
        lambda: random_tokens(10, samples, seq_len),
    ):
        with pytest.raises(RefimplError, match="at least 1 sample of 1 token"):
            make()


@given(sizes, sizes, st.data())
def test_ids_outside_the_vocabulary_are_counted_and_the_first_is_named(
    samples: int, seq_len: int, data: st.DataObject
) -> None:
    ids = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(-3, 12), min_size=seq_len, max_size=seq_len),
                min_size=samples,
                max_size=samples,
            )
        )
    )
    wrong = [(i, j) for i in range(samples) for j in range(seq_len) if not 0 <= ids[i, j] < 10]
    if not wrong:
        assert checked_ids(ids, limits(seq_len)).tolist() == ids.tolist()
        return
    i, j = wrong[0]
    with pytest.raises(RefimplError) as caught:
        checked_ids(ids, limits(seq_len))
    assert caught.value.problem == (
        f"{len(wrong)} token ids are outside the vocabulary; the first is {ids[i, j]} "
        f"(sample {i}, position {j})"
    )
    assert caught.value.expected == "ids from 0 to 9"


def test_samples_longer_than_the_model_are_refused() -> None:
    tokens = random_tokens(10, 2, 9)
    checked_ids(tokens.ids, limits(9))
    with pytest.raises(RefimplError, match="a sequence of 9 tokens") as caught:
        checked_ids(tokens.ids, limits(8))
    assert numbers(caught.value, "seq-len") == [8]


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)])
def test_empty_samples_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(RefimplError, match="token ids have dtype int64 and shape"):
        checked_ids(np.zeros(shape, np.int64), limits(9))


@given(st.text(alphabet="ab ,.\n1", max_size=200), st.integers(1, 20))
def test_pieces_join_to_the_text_and_are_cut_at_spaces_between_letters(
    text: str, size: int
) -> None:
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    for before, after in itertools.pairwise(parts):
        assert len(before) >= size
        assert before[-1].isalpha()
        assert after[0] == " "
        assert after[1].isalpha()


def test_a_text_longer_than_a_piece_gives_the_ids_of_the_whole(tmp_path: Path) -> None:
    text = "to be, or not to be. That is the question:\n\nwhether it's nobler 12 times\n" * 40
    tokenizer = Tokenizer.from_file(
        str(Path(__file__).parents[2] / "fixtures" / "llama" / "tokenizer.json")
    )
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    cut = [
        i for part in pieces(text, 50) for i in tokenizer.encode(part, add_special_tokens=False).ids
    ]
    assert len(list(pieces(text, 50))) > 10
    assert cut == whole
