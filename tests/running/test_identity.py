"""What a run depends on: each option and each input in turn, and files that change during a run."""

import dataclasses
import itertools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from documents import before_unit, interrupt, units
from program import refused, run

from refimpl import Noise, Probes, PrunerOptions, read_model
from refimpl.allocation.request import Request
from refimpl.loading.samples import random_tokens
from refimpl.running.provenance import identity
from refimpl.running.settings import Settings
from refimpl.scoring import score
from refimpl.scoring.base_signals import MeasuredBases

LLAMA = FIXTURES / "llama"
SMALL = ("--samples", 3, "--seq-len", 12)
OTHER: dict[type[Any], dict[str, Any]] = {  # another value of each field
    Noise: {
        "eta": (0.02,),
        "sink": "exclude",
        "draws": 5,
        "seed": 3,
        "noise_norm": "expected",
    },
    Probes: {
        "seed": 3,
        "delta": 0.05,
        "pruner": "magnitude",
        "samples": 1,
        "damping": 0.1,
        "precision": 0.1,
    },
    Request: {
        "base": "owl",
        "options": {"lam": 0.2},
        "sparsity": 0.4,
        "correct": "divergence",
        "strength": 0.1,
        "max_correction": 0.3,
        "lo": 0.1,
        "hi": 0.8,
        "compat": "peer",
    },
    PrunerOptions: {"pruner": "sparsegpt", "damping": 0.1, "seed": 4, "refit": True},
    Settings: {"dtype": "float64"},
}
SCHEDULING = {"threads", "memory", "progress", "finished"}
NO_RESULT = {"strength", "max_correction", "compat"}


def test_every_field_is_covered() -> None:
    """A new option must be added to `OTHER`, and so to what a run depends on."""
    for kind, values in OTHER.items():
        names = {field.name for field in dataclasses.fields(kind)} - {"kind"}
        assert names - SCHEDULING <= values.keys(), kind
        assert values.keys() <= names, kind


@pytest.mark.parametrize("plan", [Noise(), Probes()])
def test_every_field_identifies_scores(plan: Noise | Probes) -> None:
    tokens, request = random_tokens(264, 1, 8), Request(base="owl", correct=None)
    fields = {"plan": plan, "request": request, "tokens": tokens}

    def identity(bases: Any = None, **new: Any) -> dict[str, Any]:
        asked = fields | new
        return score._options(chosen=MeasuredBases.of(asked["request"], bases), **asked)

    def changed(**new: Any) -> bool:
        return identity(**new) != identity()

    assert not changed()
    assert changed(bases=())
    assert changed(tokens=random_tokens(264, 1, 9))
    for name, value in OTHER[type(plan)].items():
        assert changed(plan=dataclasses.replace(plan, **{name: value})), name
    assert changed(plan=Probes() if isinstance(plan, Noise) else Noise())
    free = NO_RESULT | (
        {"base", "sparsity", "lo", "hi"} if isinstance(plan, Noise) else set()
    )
    for name, value in OTHER[Request].items():
        changes: Any = {name: "dlp" if name == "base" else value}
        new = Request(**{"base": "owl", "correct": None} | changes)
        assert changed(request=new) == (name not in free), name


def test_the_dtype_identifies_a_run(tmp_path: Path) -> None:
    for dtype in ("float32", "float64", np.float32):
        with Settings(dtype, finished=tmp_path).open(read_model(LLAMA)) as resources:
            resources.keep({"a": 1})
    assert sum(x.is_dir() for x in tmp_path.iterdir()) == 2


def test_versions_and_the_spec_identify_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(LLAMA)
    found = [identity(model)]
    for name in ("SPEC", "__version__"):
        monkeypatch.setattr(f"refimpl.running.provenance.{name}", "other")
        found.append(identity(model))
    assert all(a != b for a, b in itertools.pairwise(found))


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.scoring.experiment.STATES_AT_RISK", 3)


def flip(path: Path, at: int = -5) -> None:
    """Change a byte of a file, and with it the time, but not the size."""
    content, status = bytearray(path.read_bytes()), path.stat()
    content[at] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


CHANGED = {
    "model.safetensors": (),
    "config.json": ("0.001", "0.002"),
    "base.json": ("0.4", "0.3"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_every_file_identifies_scores(name: str, tmp_path: Path) -> None:
    model = shutil.copytree(LLAMA, tmp_path / "model")
    path, base = model / name, model / "base.json"
    base.write_text("[0.4, 0.5, 0.6, 0.7]")
    words = ("score", model, *SMALL, "--base", base, "--perturbation", "pruning")
    with before_unit(2, interrupt):
        assert run(*words, "-o", tmp_path / "o.json").code == 130
    first = units(tmp_path / "o.json")
    if name == "model.safetensors":
        flip(path)
    else:
        content = path.read_text()
        path.write_text(content.replace(*CHANGED[name]))
        assert path.read_text() != content
    with before_unit(2, interrupt):
        assert run(*words, "-o", tmp_path / "o.json").code == 130
    assert units(tmp_path / "o.json") == first * 2  # those of each run


def test_weights_that_change_during_a_run_are_noticed(tmp_path: Path) -> None:
    model, out = shutil.copytree(LLAMA, tmp_path / "model"), tmp_path / "out.json"
    weights = model / "model.safetensors"
    for at, action in ((1, lambda: flip(weights)), (2, lambda: os.utime(weights))):
        with before_unit(at, action):
            said = refused("score", model, *SMALL, "-o", out)
        assert "the model's files changed while they were used" in said
        assert not out.exists()
        assert os.listdir(tmp_path) == ["model"]
    with before_unit(2, lambda: flip(weights)):
        said = refused("prune", model, *SMALL, "--nm", "2:4", "-o", tmp_path / "pruned")
    assert "the model's files changed while they were used" in said
    assert os.listdir(tmp_path) == ["model"]


def test_weights_that_are_cut_during_a_run_are_refused(tmp_path: Path) -> None:
    model = shutil.copytree(LLAMA, tmp_path / "model")
    opened = read_model(model)
    os.truncate(model / "model.safetensors", 4096)
    with pytest.raises(ValueError, match="was cut to 4,096 bytes"):
        opened.block(0, np.float32)
