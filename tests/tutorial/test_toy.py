"""`fixtures/toy`: a model that has learned some English, and how it was made."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES

import refimpl
from refimpl.loading.samples import Windows
from refimpl.loading.text import text_tokens

TOY = FIXTURES / "toy"
TEXTS = {
    x: (TOY / f"{x}.txt").read_text("utf-8") for x in ("calibration", "evaluation")
}
PROVENANCE = json.loads((TOY / "provenance.json").read_text("utf-8"))


def test_it_is_small_and_its_making_is_recorded() -> None:
    assert sum(path.stat().st_size for path in TOY.iterdir()) < 10**6
    model = refimpl.read_model(TOY)
    assert PROVENANCE["parameters"] == sum(
        int(np.prod(w.shape))
        for name, w in model.weights.items()
        if name != "lm_head.weight"
    )
    losses = [entry["held_out"] for entry in PROVENANCE["log"] if "held_out" in entry]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1.35  # nats per letter; a guess costs ln 76 = 4.33
    assert {"seed", "steps", "batch", "texts", "versions"} <= PROVENANCE.keys()


def test_its_loss_is_the_one_that_transformers_computed() -> None:
    count, length = PROVENANCE["evaluation"]["windows"]
    tokens = text_tokens(TOY / "evaluation.txt", TOY / "tokenizer.json", count, length)
    windows = Windows(tuple(tokens.ids), None, length, "ids", "ids")
    perplexity = refimpl.evaluate(refimpl.read_model(TOY), windows).perplexity
    assert (
        abs(perplexity.mean_nats - PROVENANCE["evaluation"]["nats"]) < 1e-4
    )  # float32


@pytest.mark.torch
def test_the_script_writes_this_folder(tmp_path: Path) -> None:
    """With two steps and short texts: the whole training takes minutes."""
    for name in PROVENANCE["texts"]:
        text = TEXTS["calibration"] + TEXTS["evaluation"]
        (tmp_path / f"austen-{name}.txt").write_text(text, "utf-8")
    out = tmp_path / "toy"
    command = [
        sys.executable,
        FIXTURES / "make_toy.py",
        tmp_path,
        "--steps",
        "2",
        "--out",
        out,
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert {path.name for path in out.iterdir()} == {
        path.name for path in TOY.iterdir()
    }
    for name in ("config.json", "tokenizer.json", "calibration.txt", "evaluation.txt"):
        assert (out / name).read_bytes() == (TOY / name).read_bytes()
    assert (
        json.loads((out / "provenance.json").read_text("utf-8")).keys()
        == PROVENANCE.keys()
    )
