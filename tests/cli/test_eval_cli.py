"""`refimpl eval`: its table, its JSON, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
from conftest import FIXTURES
from tables import cases

from refimpl.show.models import NOISE_FLOOR

LLAMA = FIXTURES / "llama"
TEXT = FIXTURES / "text.txt"


def ran(*words: object) -> str:
    return program.ran("eval", *words)


def refused(*words: object) -> str:
    return program.refused("eval", *words)


def evaluated(*words: object) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(ran(*words, "--json"))
    return document


def test_the_table_says_what_was_measured() -> None:
    words = (LLAMA, "--text", TEXT, "--window", 32)
    out, text = ran(*words, "--threads", 1), evaluated(*words)["text"]
    assert {" ".join(line.split()) for line in out.splitlines()} >= {
        "model llama, family llama, 4 blocks",
        f"perplexity {text['perplexity']:#.6g} {text['perplexity_stderr']:#.6g} 33 windows",
        f"bits per byte {text['bits_per_byte']:.5f} - 1,006 bytes",
    }
    assert (
        "33 windows of 32 tokens (the last of 15), BOS 1 added by tokenizer.json" in out
    )
    assert "float32" in out
    assert "stderr is" not in out


def test_the_document_holds_what_its_numbers_are_made_of(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    printed = ran(LLAMA, "--text", TEXT, "--window", 32, "-o", output, "--json")
    document = json.loads(output.read_text())
    assert json.loads(printed) == document
    text, how = document["text"], document["run"]
    assert text["predicted_tokens"] == sum(w["tokens"] for w in text["windows"]) == 1006
    assert (
        text["bytes"] == sum(w["bytes"] for w in text["windows"]) == TEXT.stat().st_size
    )
    assert (text["bos"], text["window"], text["num_windows"]) == (1, 32, 33)
    assert [document[key] for key in ("model", "family", "dtype")] == [
        "llama",
        "llama",
        "float32",
    ]
    assert how["versions"].keys() == {"refimpl", "numpy", "python", "blas"}


def test_one_window_has_no_standard_error() -> None:
    words = (LLAMA, "--text", TEXT, "--windows", 1)
    assert "stderr is -: it takes two windows or more" in ran(*words)
    document = evaluated(*words)
    assert document["text"]["perplexity_stderr"] is None
    assert document["text"]["window"] == 64  # the model's longest


def test_a_pruned_model_has_a_noise_floor_which_its_error_omits(tmp_path: Path) -> None:
    program.ran(
        "prune",
        LLAMA,
        "-o",
        tmp_path / "pruned",
        "--nm",
        "2:4",
        "--pruner",
        "magnitude",
    )
    said = [
        ran(model, "--text", TEXT, "--windows", 4)
        for model in (LLAMA, tmp_path / "pruned")
    ]
    note = f"stderr does not include the noise floor of pruning: {NOISE_FLOOR}"
    assert [note in x for x in said] == [False, True]


def test_ids_in_place_of_a_text(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(96).reshape(4, 24))
    words = (
        FIXTURES / "gemma2",
        "--tokens",
        tmp_path / "ids.npy",
        "--dtype",
        "float64",
    )
    document = evaluated(*words)
    assert (document["text"]["num_windows"], document["dtype"]) == (4, "float64")
    assert document["text"]["bits_per_byte"] is None
    out = ran(FIXTURES / "gemma2", "--tokens", tmp_path / "ids.npy")
    assert "ids         ids.npy" in out
    assert "bits per byte" not in out


@pytest.mark.parametrize(("words", "problem"), cases("cli", "eval"))
def test_bad_input_is_one_clear_error(words: str, problem: str) -> None:
    places = {"LLAMA": LLAMA, "GEMMA2": FIXTURES / "gemma2", "TEXT": TEXT}
    assert problem in refused(*(places.get(word, word) for word in words.split()))
