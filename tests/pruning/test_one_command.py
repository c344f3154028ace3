"""From a dense model to a pruned one in one command; texts that come with refimpl."""

import json
import re
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from program import ran, refused

from refimpl.loading.text import CALIBRATION, EVALUATION

LLAMA = FIXTURES / "llama"
SMALL = ("--samples", 2, "--seq-len", 12)


def test_the_texts_are_small_plain_and_have_nothing_in_common() -> None:
    texts = [
        files("refimpl.loading").joinpath(x).read_bytes()
        for x in (CALIBRATION, EVALUATION)
    ]
    assert sum(map(len, texts)) <= 64 << 10
    assert all(text.isascii() for text in texts)
    one, other = (set(text.split(b"\n\n")) for text in texts)
    assert one & other == {b"To the Senate and House of Representatives:"}


@pytest.mark.parametrize("command", ["score", "prune"])
def test_a_calibration_is_random_only_if_asked(command: str, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "out") if command == "prune" else ()
    words = (command, LLAMA, *SMALL, *output, "--sparsity", 0.5, "--json")
    drawn = ("--tokens", "random", *(["--force"] if output else []))
    text, random = (json.loads(ran(*words, *more)) for more in ((), drawn))
    for name in ("scores", "tokens") if command == "score" else ("calibration",):
        text, random = text[name], random[name]
    assert text["source"].startswith(f"refimpl's {CALIBRATION}, 2 samples")
    assert random["kind"] == "random"
    other = ("-o", tmp_path / "other") if output else ()
    error = refused(command, FIXTURES / "mistral", *SMALL, *other, "--sparsity", 0.5)
    assert "no tokenizer at" in error
    assert "--tokens random" in error


def test_a_damaged_record_is_refused_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    model = shutil.copytree(LLAMA, tmp_path / "model")
    (model / "pruning.json").write_text("{")
    error = refused("prune", model, "-o", tmp_path / "out", *SMALL, "--sparsity", 0.5)
    assert "pruning.json: not a record of a pruning" in error
    assert [*tmp_path.iterdir()] == [model]


def test_what_was_measured_is_kept_and_shown(tmp_path: Path) -> None:
    out, words = tmp_path / "out", (*SMALL, "--sparsity", 0.6)
    printed = ran("prune", LLAMA, "-o", out, *words)
    document = json.loads((out / "scores.json").read_text())
    (allocation,) = document["allocations"]
    heading = re.search(
        r"^block +divergence, nats +sparsity, % +0 % -+ 100 %$", printed, re.M
    )
    assert heading is not None
    shown = printed[heading.end() :].split("\n\n")[0].splitlines()[1:]
    sparsity = 100 * np.array(allocation["corrected_sparsity"])
    numbers = [
        row.split()[4] for row in shown[:3]
    ]  # with the digits that their errors leave
    for text, exact in zip(numbers, sparsity, strict=False):
        assert float(text) == round(exact, len(text.partition(".")[2]))
    assert [row.count("#") for row in shown] == [round(x / 5) for x in sparsity]
    assert "Pruning block 0 costs most" in printed
    again = tmp_path / "again"  # from the new model, its own allocation is no companion
    ran("prune", LLAMA, "-o", again, *SMALL, "--allocation", out / "scores.json")
    assert (again / "model.safetensors").read_bytes() == (
        out / "model.safetensors"
    ).read_bytes()
    assert not (again / "scores.json").exists()
    ran("prune", out, "-o", tmp_path / "twice", "--nm", "2:4", "--pruner", "magnitude")
    assert not (tmp_path / "twice" / "scores.json").exists()
