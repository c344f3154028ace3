"""The figures to play with: their numbers are those of the program, and the page is small."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES, ROOT

import refimpl
from refimpl.allocation.request import Noise
from refimpl.loading.samples import random_tokens
from refimpl.loading.text import text_tokens

sys.path.append(str(ROOT / "docs"))
import play

PAGE = (ROOT / "docs" / "play.html").read_text("utf-8")


def test_a_perturbation_travels_as_in_score() -> None:
    model, tokens = (
        refimpl.read_model(FIXTURES / "llama"),
        random_tokens(264, 3, 17, seed=5),
    )
    request = refimpl.Request(correct="none")
    scores = refimpl.score(
        model, tokens, Noise(eta=(0.1,)), request=request, dtype=np.float64
    )
    sweep, x = scores.sweep[0], play.travel(model, tokens.ids, 0.1)
    np.testing.assert_allclose(x["drift"][:, -1], sweep.coefficient, rtol=1e-10)
    np.testing.assert_allclose(x["grown"][:, -1], sweep.error_growth, rtol=1e-10)
    np.testing.assert_allclose(x["passed"][:, -1], sweep.passed_on, rtol=1e-10)


def test_the_first_token_can_be_spared() -> None:
    model, ids = (
        refimpl.read_model(FIXTURES / "llama"),
        random_tokens(264, 2, 9, seed=5).ids,
    )
    perturbed, spared = (
        play.travel(model, ids, 0.1, x, omitted=1)["drift"] for x in (0, 1)
    )
    assert 1e-4 < abs(spared[0, -1] - perturbed[0, -1]) < 0.5


@pytest.mark.thorough
def test_the_numbers_of_the_toy_model_are_on_the_page() -> None:
    known = play.numbers(PAGE)
    assert (known["alphabet"], known["range"]) == (play.ALPHABET, play.RANGE)
    now, then = play.toy_travel(), known["travel"][0]
    np.testing.assert_allclose(now["size"], then["size"], rtol=1e-3)
    for (_, a), (_, b) in zip(now["eta"], then["eta"], strict=True):
        np.testing.assert_allclose(play.decoded(a), play.decoded(b), rtol=3e-3)
    for now, then in zip(
        [*play.toy_prices(), play.smollm2_price()], known["price"], strict=True
    ):
        assert abs(now["kappa"] - then["kappa"]) < 0.02
        np.testing.assert_allclose(now["harm"], then["harm"], rtol=0.01)


def test_the_page_is_small_and_loads_nothing() -> None:
    assert len(PAGE.encode()) <= 20_000
    assert {*re.findall(r"https?://[^\"' ]+", PAGE)} == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(?:src|href)=", PAGE)
    for name in ("travel", "price"):
        (static,) = re.findall(rf'id="{name}">(<svg.*?</svg>)</figure>', PAGE, re.S)
        alone = (ROOT / "docs" / "tutorial" / f"{name}.svg").read_text("utf-8").strip()
        assert (
            alone.replace(f' fill="{play.GREY}" color="{play.GREY}"', "", 1) == static
        )


def test_the_file_of_the_claim_has_three_models_with_two_noises() -> None:
    rows = json.loads((ROOT / "docs" / "results" / "claim.json").read_text("utf-8"))
    found = [(x["model"], x["noise on"], x["eta"]) for x in rows]
    assert found == [
        (m, n, e) for m in play.MODELS for n in play.NOISE for e in (0.01, 1.0)
    ]


def test_a_folder_of_models_makes_the_page_and_the_file_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With tiny models under the names of the real ones; without a folder, their numbers stay."""
    here, real = tmp_path / "docs", tmp_path / "real"
    shutil.copytree(ROOT / "docs" / "results", here / "results")
    (here / "tutorial").mkdir()
    (here / "play.html").write_text(PAGE, "utf-8")
    for attribute, path in {
        "HERE": "",
        "TUTORIAL": "tutorial",
        "RESULTS": "results",
    }.items():
        monkeypatch.setattr(play, attribute, here / path)
    known = play.numbers(
        PAGE
    )  # the toy model's take seconds, and have a test of their own
    monkeypatch.setattr(play, "toy_travel", lambda: known["travel"][0])
    monkeypatch.setattr(play, "toy_prices", lambda: known["price"][:3])
    for name in play.MODELS:
        shutil.copytree(FIXTURES / "llama", real / name)
    (real / play.TEXT).parent.mkdir()
    shutil.copy(FIXTURES / "text.txt", real / play.TEXT)

    play.main(str(real))
    written = (here / "play.html").read_text("utf-8")
    rows = json.loads((here / "results" / "claim.json").read_text("utf-8"))
    model = refimpl.read_model(FIXTURES / "llama")
    ids = text_tokens(
        real / play.TEXT, FIXTURES / "llama" / "tokenizer.json", 4, 128
    ).ids
    spared = play.travel(model, ids, 1.0, spared=1, omitted=1)
    for row in rows[3::4]:  # noise of the size of the state, on all but the first token
        np.testing.assert_allclose(row["grown"], spared["grown"][:, -1], atol=1e-4)
    toy_model, all_tokens, but_first = play.numbers(written)["travel"]
    assert toy_model == known["travel"][0]
    assert all_tokens["name"] == "SmolLM2-135M, noise on all tokens"
    assert [x for x, _ in all_tokens["eta"]] == ["1 %", "100 %"]
    np.testing.assert_allclose(but_first["size"], spared["size"], rtol=1e-3)
    assert (here / "tutorial" / "travel.svg").read_text("utf-8").startswith("<svg")
    play.main()
    assert (here / "play.html").read_text("utf-8") == written
