"""What a mistyped command is told: the word as it should be."""

import json
import os
import shlex
from pathlib import Path

import pytest
from conftest import FIXTURES
from program import ran, refused
from tables import cases

LLAMA = FIXTURES / "llama"


@pytest.mark.parametrize(("typed", "says"), cases("cli", "corrections"))
def test_a_misspelt_word_is_answered_with_the_right_one(
    typed: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(LLAMA, "M")
    assert says in refused(*shlex.split(typed))


@pytest.mark.parametrize(("words", "said", "corrected"), cases("cli", "percentages"))
def test_a_percentage_is_told_how_to_be_one(
    words: str,
    said: str,
    corrected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink(LLAMA, "M")
    text = refused(*words.split())
    assert text.startswith(f"error: {said}\n")
    assert text.endswith(f"next: {corrected}\n")
    assert os.listdir() == ["M"]


def test_a_percentage_is_a_sparsity(tmp_path: Path) -> None:
    few = ("--samples", 1, "--seq-len", 4, "--tokens", "random")
    documents = []
    for sparsity in ("60%", "0.6"):
        words = (
            "--sparsity",
            sparsity,
            *few,
            "--only",
            "embed",
            "-o",
            tmp_path / sparsity,
        )
        ran("case", "make", LLAMA, *words)
        case = json.loads((tmp_path / sparsity / "case.json").read_text())
        words = ("--sparsity", sparsity, *few, "--json")
        scored = json.loads(ran("score", LLAMA, *words))
        documents.append(
            (case["recipe"]["sparsity"], scored["allocations"][0]["total_pruned"])
        )
    assert documents[0] == documents[1]
    assert documents[0][0] == 0.6
