"""Multiple choice by the definitions of lm-evaluation-harness, written out a second time."""

import json
from math import isnan, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import model_of
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from scipy.special import log_softmax
from tables import cases
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from refimpl import RefimplError, forward, read_model
from refimpl.evaluation.encoding import Encoder, choice_sequences, encoder
from refimpl.evaluation.evaluate import evaluate
from refimpl.evaluation.measures import Accuracy, Question, Questions, mean_stderr, read_questions
from refimpl.model.ops import Array
from refimpl.tokens.text import TextTokenizer

LLAMA = FIXTURES / "llama"
ROWS: list[dict[str, Any]] = [
    {"question": "Drop a stone", "choices": ["into the third", "no"], "answer": 0},
    {"question": "A river ", "choices": ["runs", "sings", "été"], "answer": 1, "id": 7},
    {"question": "", "choices": ["to", "be"], "answer": 1},
    {"question": "<s>A river", "choices": ["a", "b", "c", "d"], "answer": 3},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def asked(*rows: dict[str, Any]) -> Questions:
    questions = (
        Question(row["question"], tuple(row["choices"]), row["answer"], f"line {n}")
        for n, row in enumerate(rows, 1)
    )
    return Questions(tuple(questions), "by hand", "")


def accuracy_of(*rows: dict[str, Any]) -> Accuracy:
    accuracy = evaluate(model_of("llama"), None, asked(*rows), dtype="float64").accuracy
    assert accuracy is not None
    return accuracy


def log_probabilities(ids: list[int]) -> Array:
    """Those of the next token after each id, [S, V]."""
    return log_softmax(forward(model_of("llama"), ids, dtype="f8").logits[0], axis=-1)


def test_log_likelihoods_are_those_of_the_forward() -> None:
    accuracy = accuracy_of(*ROWS)
    tokenizer = Tokenizer.from_file(str(LLAMA / "tokenizer.json"))

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    for row, values, lengths in zip(ROWS, accuracy.log_likelihoods, accuracy.lengths, strict=True):
        context = row["question"].rstrip().removeprefix("<s>")
        spaces = row["question"][len(row["question"].rstrip()) :]
        for choice, value in zip(row["choices"], values, strict=True):
            given = [1, *ids(context)]  # BOS once, and in place of an empty context
            scored = ids(f"{spaces} {choice}")
            p = log_probabilities(given + scored)[len(given) - 1 : -1]
            assert value == pytest.approx(p[np.arange(len(scored)), scored].sum(), rel=1e-12)
        assert lengths.tolist() == [len(choice) for choice in row["choices"]]
    assert accuracy.answers.tolist() == [row["answer"] for row in ROWS]


@given(st.data())
def test_accuracies_are_the_harnesss(data: st.DataObject) -> None:
    lls, lengths, answers = [], [], []
    for _ in range(data.draw(st.integers(1, 8))):
        k = data.draw(st.integers(2, 5))
        value = st.sampled_from([-9.0, -6.0, -4.0, -3.0, -2.0])
        lls.append(np.array(data.draw(st.lists(value, min_size=k, max_size=k))))
        lengths.append(np.array(data.draw(st.lists(st.integers(1, 4), min_size=k, max_size=k))))
        answers.append(data.draw(st.integers(0, k - 1)))
    assert mean_stderr(np.array([True, True])) == 0
    found = Accuracy(tuple(lls), tuple(lengths), np.array(answers))
    norms = [ll / size for ll, size in zip(lls, lengths, strict=True)]
    for values, acc, stderr in (
        (lls, found.acc, found.acc_stderr),
        (norms, found.acc_norm, found.acc_norm_stderr),
    ):
        right = [float(np.argmax(x) == answer) for x, answer in zip(values, answers, strict=True)]
        assert acc == pytest.approx(mean(right))
        if len(right) == 1:
            assert isnan(stderr)
        else:
            assert stderr == pytest.approx(stdev(right) / sqrt(len(right)))


def byte_encoder(bos: int | None = None, prefix: int | None = 256, longest: int = 64) -> Encoder:
    """256 bytes, the merge of a space and "a", then <s> as 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*alphabet, "Ġa"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens(["<s>"])
    ours = TextTokenizer(Path("bytes.json"), tokenizer.to_str().encode())
    return Encoder(ours, bos, "by hand", prefix, longest)


def test_pairs_are_tokenised_together() -> None:
    encode = byte_encoder()
    space, a, x = (encode.ids(text)[0] for text in (" ", "a", "x"))
    assert encode.pair("x", " a") == ([x], [256])  # the merge of space and a
    assert encode.pair("x ", "a") == ([x], [256])  # the space moves to the continuation
    assert encode.pair("x \n ", "a") == ([x], [space, encode.ids("\n")[0], 256])
    assert encode.pair("x", "a") == ([x], [a])
    # what the context alone has as two ids the whole has as one: the harness loses it, so do we
    assert encode.pair("\N{NO-BREAK SPACE}x", " a")[1] == [256]


def test_bos_is_put_before_a_text_once_and_starts_an_empty_context() -> None:
    encode = byte_encoder(bos=257, prefix=257)
    x = encode.ids("x", special=False)[0]
    assert encode.ids("x") == [257, x]
    assert encode.ids("<s>x") == [257, x]
    assert encode.ids("<s>x", special=True) == [257, 257, x]
    assert encode.pair("x", "x") == ([257, x], [x])
    assert encode.pair("", "x") == ([257], [x])
    assert encode.pair("", "<s>x") == ([257], [x])  # the continuation's own is the context
    with pytest.raises(RefimplError, match="names BOS or EOS"):
        byte_encoder(prefix=None).pair("", "x")


def test_what_is_too_long_loses_its_start() -> None:
    encode = byte_encoder(longest=4)
    assert encode.fitted([1, 2, 3], [4, 5]) == ([1, 2, 3, 4, 5], 3)  # the last is no input
    assert encode.fitted([0, 1, 2, 3], [4, 5]) == ([1, 2, 3, 4, 5], 3)
    assert encode.fitted([0], [1, 2, 3, 4]) == ([0, 1, 2, 3, 4], 1)
    for before, scored in (([0], [1, 2, 3, 4, 5]), ([0], []), ([], [1])):
        refusal_of(encode.fitted, before, scored, says="at most 4 of continuation")
    row = {"question": "xxxxx", "choices": ["a", "xx", "x" * 9], "answer": 0}
    says = "line 1: 5 tokens of context and 10 of continuation"
    refusal_of(choice_sequences, encode, asked(row), says=says)
    found = choice_sequences(encode, asked({**row, "choices": ["a", "xx"]}))
    assert found.truncated == 2  # 5 + 1 and 5 + 3 tokens of 5


def test_the_prefix_is_bos_or_else_eos(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((LLAMA / name).read_bytes())

    def prefix(**settings: Any) -> int | None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return encoder(read_model(tmp_path)).prefix

    assert prefix(bos_token="<s>", eos_token="</s>") == 1
    assert prefix(eos_token="</s>") == 2
    assert prefix() == 1  # bos_token_id of config.json
    tokenizer = Tokenizer.from_file(str(LLAMA / "tokenizer.json"))
    tokenizer.post_processor = processors.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    found = encoder(read_model(tmp_path))
    assert (found.bos, found.prefix) == (None, 1)


def test_reading_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    found = read_questions(path)
    assert [q.question for q in found.questions] == [row["question"] for row in ROWS]
    assert [list(q.choices) for q in found.questions] == [row["choices"] for row in ROWS]
    assert [q.where for q in found.questions] == [f"{path}:{n}" for n in (1, 3, 5, 7)]
    assert found.source == "q.jsonl"
    assert found.sha256 != read_questions(write(tmp_path / "two.jsonl", ROWS[:2])).sha256


@pytest.mark.parametrize(("line", "problem"), cases("evaluation", "bad_lines"))
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "q.jsonl", ROWS[:1])
    path.write_text(path.read_text() + "\n\n" + line + "\n")
    assert f"{path}:3" in refusal_of(read_questions, path, says=problem).problem


def test_no_questions(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text("\n")
    refusal_of(read_questions, path, says="is empty")
    refusal_of(read_questions, tmp_path / "no.jsonl", says="No such file")
