"""The grader of the exercises: right answers pass, and each known mistake is named."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

sys.path.append(str(ROOT / "docs" / "tutorial"))
import grade
import pico

pytestmark = pytest.mark.usefixtures("at_the_top")


@pytest.fixture
def at_the_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(grade, "TRIES", dict.fromkeys(grade.HINTS, 0))


def graded(
    function: Callable[..., Any], name: str, capsys: pytest.CaptureFixture[str]
) -> str:
    def mine(*given: Any) -> Any:
        return function(*given)

    mine.__name__ = name
    grade.grade(mine)
    return capsys.readouterr().out


@pytest.mark.parametrize("name", grade.EXERCISES)
def test_the_right_function_passes(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graded(grade.EXERCISES[name][1], name, capsys).startswith(f"{name}: right.")


@pytest.mark.parametrize("name", grade.EXERCISES)
def test_each_mistake_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    mistakes = grade.EXERCISES[name][2]
    for words, wrong in mistakes.items():
        said = graded(wrong, name, capsys).splitlines()
        assert said[0].endswith(f"known mistake: {words}."), said
        assert said[1] == f"Hint 1: {grade.HINTS[name][0]}"


def test_it_says_what_it_cannot_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to grade yet" in graded(lambda *_: None, "drift", capsys)
    assert "your function raises TypeError: " in graded(lambda _: 0, "drift", capsys)
    said = graded(lambda a, b: pico.drift(a, b)[0], "drift", capsys)
    assert "The shape is (64,), and should be (4, 64)." in said
    assert said.count("Hint") == 2
    assert "The error is 1 of the largest number" in graded(
        lambda a, b: 2 * pico.drift(a, b), "drift", capsys
    )
    assert "nan" not in graded(lambda a, b: pico.drift(a, b) * np.nan, "drift", capsys)
    assert "no exercise" in graded(pico.drift, "drifts", capsys)


def test_the_oracle_names_what_the_grader_does_not_know(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = graded(lambda x, w, eps: pico.rms_norm(x, 1 + w, eps), "rms_norm", capsys)
    assert "refimpl check says: " in said
    assert "attn_norm.weight is taken plus 1" in said
