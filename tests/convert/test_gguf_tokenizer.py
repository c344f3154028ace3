"""The tokenizer of a GGUF file: ids as llama.cpp computes them, and only what the file says."""

import json
from pathlib import Path
from typing import Any

import pytest
from refusals import refusal_of
from tables import cases
from tokenizers import Tokenizer

from refimpl.convert.gguf_file import refusing_damage
from refimpl.convert.tokenizer import CUTS, tokenizer_files
from refimpl.loading.text import text_tokens

LETTERS = ["Ġ", "Ċ", *map(chr, range(33, 127))]
TOKENS = ["<s>", *LETTERS, "ab", "abc"]
WHOLE = ["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"]
"""Pre-tokenizers for which llama.cpp sets `ignore_merges` and `add_bos` (src/llama-vocab.cpp)."""


def metadata(**facts: Any) -> dict[str, Any]:
    """A tokenizer whose token "abc" no merge makes; a fact that is `...` is left out."""
    facts = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": TOKENS,
        "merges": ["a b"],
        "bos_token_id": 0,
        "token_type": [3, *[1] * (len(TOKENS) - 1)],
    } | facts
    return {
        f"tokenizer.ggml.{key}": value
        for key, value in facts.items()
        if value is not ...
    }


def tokenizer(folder: Path, **facts: Any) -> Tokenizer:
    """The tokenizer that is written."""
    with refusing_damage(Path("x.gguf")):
        for name, content in tokenizer_files(metadata(**facts)).items():
            (folder / name).write_bytes(content)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("pre", CUTS)
def test_a_token_stays_whole_where_merges_are_ignored(pre: str, tmp_path: Path) -> None:
    made = tokenizer(tmp_path, pre=pre)
    parts = ["abc"] if pre in WHOLE else ["ab", "c"]
    assert made.encode("abc", add_special_tokens=False).tokens == parts
    assert made.encode("abc").tokens == (["<s>"] if pre in WHOLE else []) + parts


@pytest.mark.parametrize(("name", "said"), cases("convert", "said_of_bos"))
def test_bos_is_what_the_file_says_or_the_default_of_its_pre_tokenizer(
    name: str, said: tuple[dict[str, Any], int | None, str], tmp_path: Path
) -> None:
    facts, bos, reason = said
    tokenizer(tmp_path, **facts)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert settings.get("add_bos_token", ...) == facts.get("add_bos_token", ...)
    text = tmp_path / "text.txt"
    text.write_text("abc abc abc abc", "utf-8")
    tokens = text_tokens(text, tmp_path / "tokenizer.json", 1, 4, bos_id=0)
    assert tokens.bos == bos
    assert reason in tokens.source


@pytest.mark.parametrize(("name", "case"), cases("convert", "gguf_tokenizers"))
def test_what_has_no_certain_ids_is_refused(
    name: str, case: Any, tmp_path: Path
) -> None:
    facts, says = case
    refusal_of(tokenizer, tmp_path, **facts, says=says, remedy="original")


PIECES = {  # what a pattern makes of a text, as transformers' tokenizers of these models do
    "qwen2": ("ab 12 don't", ["ab", " ", "1", "2", " don", "'t"]),
    "glm4": ("ab1234 c", ["ab", "123", "4", " c"]),
}


@pytest.mark.parametrize("pre", PIECES)
def test_a_text_is_cut_by_the_pattern_of_its_pre_tokenizer(
    pre: str, tmp_path: Path
) -> None:
    text, pieces = PIECES[pre]
    cut = tokenizer(tmp_path, pre=pre).pre_tokenizer
    assert cut is not None
    assert [text[a:b] for _, (a, b) in cut.pre_tokenize_str(text)] == pieces


def test_pieces_are_merged_by_their_scores(tmp_path: Path) -> None:
    tokens = [
        "<bos>",
        "<unk>",
        "▁",
        "a",
        "b",
        "c",
        "bc",
        "ab",
        "▁ab",
        "<0xC3>",
        "<0xA9>",
    ]
    facts = {
        "model": "llama",
        "pre": ...,
        "tokens": tokens,
        "token_type": [3, 2, *[1] * 7, 6, 6],
        "scores": [0, 0, -1, -1, -1, -1, -2, -3, -4, 0, 0],
        "merges": ...,
        "unknown_token_id": 1,
    }
    made = tokenizer(tmp_path, **facts)
    assert made.encode("abc abé").tokens == [
        "<bos>",
        "▁",
        "a",
        "bc",
        "▁ab",
        "<0xC3>",
        "<0xA9>",
    ]
    assert made.decode(made.encode("abc ab").ids) == "abc ab"
    assert tokenizer(tmp_path, **facts, add_space_prefix=False).encode("ab").tokens[
        1:
    ] == ["ab"]


def test_tokens_that_take_long_to_split_are_refused(tmp_path: Path) -> None:
    """A token of n letters has n splits of n letters: the time grows with the square."""
    tokens = [f"{i:0>1000}" for i in range(200)]
    facts = {
        "model": "llama",
        "tokens": tokens,
        "token_type": ...,
        "scores": [0.0] * len(tokens),
    }
    refusal_of(tokenizer, tmp_path, **facts, says="too many long tokens")


def test_keys_that_change_no_id_are_accepted(tmp_path: Path) -> None:
    harmless = {
        "add_eos_token": True,
        "eot_token_id": 1,
        "seperator_token_id": 2,
        "eos_token_id": 999,
        "fim_pre_token_id": 3,
        "token_type_count": 1,
        "remove_extra_whitespaces": False,
    }
    made = tokenizer(tmp_path, **harmless)
    assert made.encode("abc").tokens == ["ab", "c"]
