"""Core cases by name, and a report in a narrow terminal."""

from pathlib import Path

import pytest
from conftest import FIXTURES
from program import ran, refused, run
from refusals import refusal_of

from refimpl.oracle.case_folders import case_or_model

CASES = FIXTURES / "cases"


def test_a_check_that_fails_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    words = ("check", "llama", "opt/expected.safetensors", "--only", "embed")
    known = set(run(*words).out.split()) | {"\\"}  # where the command to repeat goes on
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        shown = run(*words).out
        assert (
            max(len(line) for line in shown.splitlines() if "again:" not in line)
            <= width
        )
        assert set(shown.split()) <= known


def test_check_takes_a_core_case_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = CASES / "llama" / "expected.safetensors"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()  # a model's folder, for example
    assert "passes: 394 steps" in ran("check", "llama", expected)
    said = refused("check", "lama", expected)
    assert "a core case (llama, opt, phi3)" in said
    assert "-o" in refused(
        "check", "llama", expected, "-o", CASES / "llama" / "case.json", "--force"
    )


@pytest.mark.parametrize("name", ["tiny", "a/b/tiny", "/org/tiny"])
def test_two_words_are_a_model_of_the_hub_and_nothing_else_is(name: str) -> None:
    assert case_or_model(Path("org/tiny")) == Path("org/tiny")
    refusal_of(case_or_model, Path(name), says=f"{name}: no such case")
