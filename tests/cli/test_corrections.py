"""What a mistyped command is told: the command as it should be."""

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from cli_page import commands
from conftest import FIXTURES
from program import ran, refusal, refused, run
from tables import cases

LLAMA = FIXTURES / "llama"


@pytest.mark.parametrize(("typed", "corrected"), cases("cli", "corrections"))
def test_the_corrected_command(
    typed: str, corrected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("M", "model"):
        os.symlink(LLAMA, name)
    Path("folder").mkdir()
    for name in ("folder/text.txt", "scores.json"):
        Path(name).touch()
    said = refused(*shlex.split(typed)).rpartition("next: ")[2].strip()
    assert said == (corrected if corrected.startswith("see ") else f"refimpl {corrected}")
    if "prune M" in typed:
        assert "refimpl prune" in refused(*shlex.split(typed))


NEEDED = dict(cases("cli", "needed"))


def value_of(option: Any) -> list[str]:
    return [] if option.is_flag else [getattr(option.type, "choices", ["1"])[0]]


@pytest.mark.parametrize("name", NEEDED)
def test_every_misspelt_option_is_corrected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a letter less, and with one twice."""
    options = [x for x in commands()[name].params if x.param_type_name == "option"]
    assert len(options) > 1
    for option in options:
        word = max(option.opts, key=len)
        for wrong in (word[:4] + word[5:], word[:4] + word[3:]):
            if len(word) < 6 or any(wrong in other.opts for other in options):
                continue
            typed = [*name.split(), *shlex.split(NEEDED[name]), wrong, *value_of(option)]
            said = refused(*typed).rpartition("next: ")[2].strip()
            corrected = [word if x == wrong else x for x in typed]
            assert shlex.split(said) == ["refimpl", *corrected]


def test_a_message_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("prune", "a-model", "-o", "x", "--sparsity", "0.5", "--pruner", "Wand")
    monkeypatch.setenv("COLUMNS", "40")
    result = run(*words, err_terminal=True)
    refusal(result)
    lines = result.err.splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) > 3
    command = result.err[result.err.index("next: ") + 6 :].replace("\\\n", "")
    assert shlex.split(command) == ["refimpl", *words[:-1], "wanda"]  # a shell reads one command


@pytest.mark.parametrize(("words", "said", "corrected"), cases("cli", "percentages"))
def test_a_percentage_is_told_how_to_be_one(
    words: str, said: str, corrected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        words = ("--sparsity", sparsity, *few, "--only", "embed", "-o", tmp_path / sparsity)
        ran("case", "make", LLAMA, *words)
        case = json.loads((tmp_path / sparsity / "case.json").read_text())
        words = ("--sparsity", sparsity, *few, "--json")
        scored = json.loads(ran("score", LLAMA, *words))
        documents.append((case["recipe"]["sparsity"], scored["allocations"][0]["total_pruned"]))
    assert documents[0] == documents[1]
    assert documents[0][0] == 0.6
