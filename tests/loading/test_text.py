"""Samples of a text are pieces of it in order; every error gives numbers that work."""

import hashlib
import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from hypothesis import given
from hypothesis import strategies as st
from program import suggested
from refusals import refusal_of
from tables import cases
from tokenizers import (
    AddedToken,
    Tokenizer,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

from refimpl.errors import RefimplError
from refimpl.loading.samples import SHORTEST, spread_samples
from refimpl.loading.text import TextTokenizer, encoded_pieces, text_tokens

BOS, EOS = 256, 257
sizes = st.integers(1, 12)
bos_ids = st.sampled_from([None, 10**6])
TEMPLATE = processors.TemplateProcessing(
    single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
)


def byte_tokenizer(post_processor: Any = None) -> Tokenizer:
    """256 bytes without merges, then <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
    )
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
    path.write_bytes(
        "Entia non sunt multiplicanda – praeter necessitatem.\r\n".encode() * 3
    )
    return path


def plain_ids(path: Path) -> list[int]:
    return (
        byte_tokenizer()
        .encode(path.read_bytes().decode(), add_special_tokens=False)
        .ids
    )


@given(sizes, sizes, st.integers(0, 200), bos_ids)
def test_samples_are_pieces_of_the_stream_in_order(
    samples: int, body: int, spare: int, bos: int | None
) -> None:
    total = samples * body + spare
    extra = int(bos is not None)
    ids = spread_samples(np.arange(total), samples, body + extra, bos, "stream")
    assert ids.shape == (samples, body + extra)
    assert ids.dtype == np.int64
    assert ids.flags.c_contiguous
    assert (ids[:, :extra] == 10**6).all()
    pieces = ids[:, extra:]
    starts = pieces[:, 0]
    assert (
        pieces == starts[:, None] + np.arange(body)
    ).all()  # the id is its place in the stream
    assert (np.diff(starts) >= body).all()  # in order, and nothing twice
    assert starts[0] == 0
    assert samples == 1 or pieces[-1, -1] == total - 1
    assert samples < 3 or np.ptp(np.diff(starts)) <= 1  # evenly


@given(st.integers(1, 40), st.integers(2, 40), st.integers(1, 300), bos_ids)
def test_numbers_in_the_error_work_and_are_the_largest(
    samples: int, seq_len: int, total: int, bos: int | None
) -> None:
    stream, extra = np.arange(total), int(bos is not None)
    if samples * (seq_len - extra) <= total:
        assert spread_samples(stream, samples, seq_len, bos, "stream").shape == (
            samples,
            seq_len,
        )
        return
    caught = refusal_of(
        spread_samples,
        stream,
        samples,
        seq_len,
        bos,
        "stream",
        says=f"has {total} tokens",
    )
    lengths, counts = suggested(caught, "seq-len"), suggested(caught, "samples")
    assert (
        lengths or counts or (caught.remedy == "use a longer text" and total < SHORTEST)
    )
    assert all(length >= SHORTEST for length in lengths)
    if " or " not in caught.remedy and lengths and counts:  # neither alone is enough
        assert total // samples + extra < SHORTEST
        assert total < seq_len - extra
        assert spread_samples(stream, counts[0], lengths[0], bos, "stream").shape == (
            1,
            total + extra,
        )
        return
    for longest in lengths:
        assert spread_samples(stream, samples, longest, bos, "stream").shape == (
            samples,
            longest,
        )
        refusal_of(spread_samples, stream, samples, longest + 1, bos, "stream")
    for most in counts:
        assert spread_samples(stream, most, seq_len, bos, "stream").shape == (
            most,
            seq_len,
        )
        refusal_of(spread_samples, stream, most + 1, seq_len, bos, "stream")
    assert bool(lengths) == (total // samples + extra >= SHORTEST)
    assert bool(counts) == (total >= seq_len - extra)


ROBERTA = processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS))
LLAMA3 = processors.Sequence([processors.ByteLevel(trim_offsets=False), TEMPLATE])
BYTES = processors.ByteLevel(trim_offsets=False)
ADDED_TOKEN = {
    "__type": "AddedToken",
    "content": "<s>",
    "lstrip": False,
    "special": True,
}
ADD: dict[str, Any] = {"add_bos_token": True}
UNKNOWN = ADD | {"bos_token": "<not in vocabulary>"}
ADDED = (BOS, f"BOS {BOS} added by tokenizer.json")
NAMED = (BOS, f"BOS {BOS} asked for by tokenizer_config.json")
FALLBACK = (7, "BOS 7 (from config.json) asked for by tokenizer_config.json")
FORBIDDEN = (None, "no BOS (add_bos_token is false in tokenizer_config.json)")
UNASKED = (None, "no BOS asked for")
# Post-processor, tokenizer_config.json, special_tokens_map.json, and BOS with its reason.
BOS_RULES: dict[
    str, tuple[Any, dict[str, Any], dict[str, Any], tuple[int | None, str]]
] = {
    "nothing": (None, {}, {}, UNASKED),
    "named only": (None, {"bos_token": "<s>"}, {}, UNASKED),
    "a name": (BYTES, ADD | {"bos_token": "<s>"}, {}, NAMED),
    "an added token": (BYTES, ADD | {"bos_token": ADDED_TOKEN}, {}, NAMED),
    "a name in the map": (
        BYTES,
        ADD | {"bos_token": None},
        {"bos_token": "<s>"},
        NAMED,
    ),
    "an added token in the map": (BYTES, ADD, {"bos_token": ADDED_TOKEN}, NAMED),
    "no known name": (None, UNKNOWN, {}, FALLBACK),
    "forbidden": (
        TEMPLATE,
        {"add_bos_token": False, "bos_token": "<s>"},
        {},
        FORBIDDEN,
    ),
} | {
    f"{name} {config}": (post_processor, config, {}, ADDED)
    for name, post_processor in (
        ("template", TEMPLATE),
        ("roberta", ROBERTA),
        ("llama3", LLAMA3),
    )
    for config in ({}, {"add_bos_token": None}, ADD)
}


@pytest.mark.parametrize("name", BOS_RULES)
def test_a_text_is_cut_over_its_whole_length_by_the_rule_for_bos(
    text: Path, save: Callable[..., Path], name: str
) -> None:
    post_processor, config, special_tokens, (bos, reason) = BOS_RULES[name]
    model = save(
        post_processor, tokenizer_config=config, special_tokens_map=special_tokens
    )
    tokens, ids = text_tokens(text, model, 4, 10, bos_id=7), plain_ids(text)
    front = [] if bos is None else [bos]
    body = 10 - len(front)
    assert (tokens.kind, tokens.bos, tokens.ids.shape) == ("text", bos, (4, 10))
    assert (tokens.ids[:, : len(front)] == front).all()
    assert tokens.ids[0].tolist() == front + ids[:body]
    assert (
        tokens.ids[-1].tolist() == front + ids[-body:]
    )  # and no </s> at the end of the stream
    assert tokens.source == (
        f"text.txt, 4 samples of 10 tokens spread over {len(ids)}, {reason}"
    )


def test_hash_is_of_little_endian_int64(text: Path, save: Callable[..., Path]) -> None:
    tokens = text_tokens(text, save(), 2, 3)
    flat = tokens.ids.ravel().tolist()
    assert tokens.sha256 == hashlib.sha256(struct.pack("<6q", *flat)).hexdigest()


def test_truncation_and_padding_do_not_shorten_the_text(
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
    ids = plain_ids(text)
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    assert text_tokens(text, save(), 1, 5).ids.tolist() == [ids[:5]]


def test_too_short_a_text_says_what_would_do(
    text: Path, save: Callable[..., Path]
) -> None:
    model, problem = save(TEMPLATE), f"text.txt has {len(plain_ids(text))} tokens"
    caught = refusal_of(text_tokens, text, model, 4, 100, says=problem)
    assert "BOS included" in caught.problem
    assert (
        text_tokens(text, model, 4, suggested(caught, "seq-len")[0]).ids.shape[0] == 4
    )
    assert (
        text_tokens(text, model, suggested(caught, "samples")[0], 100).ids.shape[1]
        == 100
    )
    caught = refusal_of(text_tokens, text, model, 99, 100, says=problem)
    assert not suggested(caught, "seq-len")  # of a few tokens


@pytest.mark.parametrize(("name", "case"), cases("loading", "malformed"))
def test_malformed_files_are_refused(
    text: Path,
    save: Callable[..., Path],
    name: str,
    case: tuple[dict[str, str | bytes], str],
) -> None:
    model, (files, problem) = save(), case
    for file, content in files.items():
        content = content.encode() if isinstance(content, str) else content
        (text.parent / file).write_bytes(content)
    with pytest.raises(RefimplError, match=problem):
        text_tokens(text, model, 1, 1)


def test_no_sample_is_bos_alone_or_begins_with_two(
    text: Path, save: Callable[..., Path]
) -> None:
    refusal_of(text_tokens, text, save(TEMPLATE), 4, 1, says="contain only BOS")
    twice = processors.TemplateProcessing(
        single="<s> <s> $A", special_tokens=[("<s>", BOS)]
    )
    refusal_of(text_tokens, text, save(twice), 1, 8, says="puts 2 tokens before a text")


def test_text_without_a_token_is_refused(text: Path, tmp_path: Path) -> None:
    Tokenizer(models.BPE({"§": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(RefimplError, match=r"has 0 tokens[^§]*a longer text"):
        text_tokens(text, tmp_path / "tokenizer.json", 1, 1)


def test_files_that_cannot_be_read_are_refused(
    text: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save()
    for path, tokenizer, problem in (
        (
            text.with_name("absent.txt"),
            model,
            r"absent\.txt: cannot be read \(No such file",
        ),
        (text.parent, model, "is not a regular file"),
        (text, model.with_name("absent.json"), r"no tokenizer at(.|\n)*`tokens=FILE"),
    ):
        with pytest.raises(RefimplError, match=problem):
            text_tokens(path, tokenizer)

    def forbidden(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", forbidden)
    refusal_of(
        text_tokens, text, model, says="json: cannot be read (Permission denied)"
    )


@pytest.mark.torch
@pytest.mark.parametrize("post_processor", [None, TEMPLATE, ROBERTA, LLAMA3])
def test_transformers_agrees(
    text: Path, save: Callable[..., Path], post_processor: Any
) -> None:
    from transformers import PreTrainedTokenizerFast

    model = save(post_processor)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(model), eos_token=AddedToken("</s>")
    )
    expected = [i for i in theirs(text.read_bytes().decode())["input_ids"] if i != EOS]
    assert text_tokens(text, model, 1, len(expected)).ids.tolist() == [expected]


SENTENCE = (
    "to be, or not to be. That is the question:\n\nwhether it's nobler 12 times\n"
)
CHINESE = "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工"
TEXTS = {
    "words": SENTENCE * 40,
    "no space between letters": "to, be; or: not 12 times - " * 120,
    "one letter": "a" * 3000,
    "one word": "".join(chr(97 + i * i * 7 % 26) for i in range(3000)),
    "Chinese lines": "".join(
        CHINESE[i:] + ("。\n", "\n\n", "\r\n")[i % 3] for i in range(20)
    )
    * 5,
    "Chinese": "".join(CHINESE[i * i * 5 % len(CHINESE)] for i in range(3000)),
    "beyond the basic plane": "😀👍🏽é" * 700,
}


CUTTABLE = ("words", "Chinese lines")  # at a space or a line break between letters


def trained(prefix: str) -> Tokenizer:
    """BPE trained on the texts: with GPT-2's pieces, in one piece, or with a space before texts."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if prefix == "one piece":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False
        )
    elif prefix == "pieces":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
            split=False, prepend_scheme="always"
        )
    some = [text[i : i + 40] for text in TEXTS.values() for i in range(0, 1200, 40)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<unk>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(some, trainer)
    return tokenizer


@pytest.fixture(scope="module", params=["pieces", "one piece", "a space"])
def bpe(request: pytest.FixtureRequest) -> tuple[str, Tokenizer, TextTokenizer]:
    tokenizer = trained(request.param)
    return (
        request.param,
        tokenizer,
        TextTokenizer(Path("x"), tokenizer.to_str().encode()),
    )


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("size", [501, 1000])
def test_pieces_have_the_ids_of_the_whole_text(
    name: str, size: int, bpe: tuple[str, Tokenizer, TextTokenizer]
) -> None:
    text, (kind, tokenizer, ours) = TEXTS[name], bpe
    if name in CUTTABLE and kind == "one piece":
        pytest.skip("a token may reach over a space or a line break")
    parts = list(encoded_pieces(text, ours, name, True, size))
    assert "".join(part.text for part in parts) == text
    if name in CUTTABLE:
        assert len(parts) >= len(text) // (size + 99)
    whole = tokenizer.encode(text, add_special_tokens=False)
    ids = np.concatenate([part.ids for part in parts]).tolist()
    starts = np.cumsum([0, *(len(part.text) for part in parts[:-1])])
    places = np.concatenate([a + p.spans for a, p in zip(starts, parts, strict=True)])
    if kind == "a space":  # each piece begins with one, and a few ids differ after it
        assert abs(len(ids) - len(whole.ids)) <= 8 * len(parts)
        return
    assert ids == whole.ids
    assert places.tolist() == [list(pair) for pair in whole.offsets]


def test_a_text_is_cut_between_letters(
    bpe: tuple[str, Tokenizer, TextTokenizer],
) -> None:
    parts = list(encoded_pieces(SENTENCE * 300, bpe[2], "x", size=50))
    assert len(parts) > 10
    for before, after in itertools.pairwise(parts):
        assert before.text[-1].isalpha() or after.text[0].isalpha()
        assert before.text[-1] == "\n" or after.text[0] in " \n"


def test_a_text_that_cannot_be_cut_is_refused(
    text: Path, save: Callable[..., Path]
) -> None:
    text.write_text("a" * (1 << 20) + "b\nc")
    says = {"says": "text.txt: 1,048,577 characters, and no", "remedy": "into lines"}
    refusal_of(text_tokens, text, save(), **says)


def test_large_texts_are_refused_unread_or_in_time(tmp_path: Path) -> None:
    path, tokenizer = tmp_path / "text.txt", FIXTURES / "llama" / "tokenizer.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    refusal_of(text_tokens, path, tokenizer, says="larger than 64 MiB")
    refusal_of(text_tokens, Path("/dev/zero"), tokenizer, says="is not a regular file")
