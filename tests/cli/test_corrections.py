"""What a mistyped command is told: the command as it should be."""

import os
import shlex
from pathlib import Path

import pytest
from conftest import FIXTURES
from program import refusal, refused, run

LLAMA = FIXTURES / "llama"


@pytest.mark.parametrize(
    ("typed", "corrected"),
    [
        ("scor M", "score M"),
        ("help prun", "help prune"),
        ("case shw llama", "case show llama"),
        ("score M --sparcity 0.5", "score M --sparsity 0.5"),
        ("score M --correct absorbtion", "score M --correct absorption"),
        ("prune M -o x --sparsity 50% --method Wand", "prune M -o x --sparsity 50% --method wanda"),
        ("score M --base owll", "score M --base owl"),
        ("score modle", "score model"),
        ("score ./modle/ --base owl", "score model --base owl"),
        ("score M --text folder/text.tx", "score M --text folder/text.txt"),
        ("allocate scores.jsn", "allocate scores.json"),
        ("prune M", "prune M -o FOLDER"),
        ("prune M -o", "prune M -o VALUE"),
        ("prune M -o x", "prune M -o x --sparsity 0.5"),
        ("score", "score MODEL"),
        ("check llama", "check llama ACTUAL"),
        ("score M --zzz", "see refimpl score --help"),
        ("score M --samples x", "see refimpl score --help"),
    ],
)
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


def test_a_message_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("prune", "a-model", "-o", "x", "--sparsity", "0.5", "--method", "Wand")
    monkeypatch.setenv("COLUMNS", "40")
    result = run(*words, err_terminal=True)
    refusal(result)
    lines = result.err.splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) > 3
    command = result.err[result.err.index("next: ") + 6 :].replace("\\\n", "")
    assert shlex.split(command) == ["refimpl", *words[:-1], "wanda"]  # a shell reads one command
