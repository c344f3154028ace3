"""Unit vectors: right kernels pass on every machine, and wrong ones fail at what tests them."""

import json
import subprocess
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import Arrays, write_arrays
from processes import ENV
from program import ran, refused, run

from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.position_tables import causal_bias
from refimpl.oracle import vectors
from refimpl.oracle.candidates import checked_file
from refimpl.oracle.variants import VARIANTS, Mistake
from refimpl.oracle.vectors import KERNELS, outputs_of, vectors_of
from refimpl.pruners.counts import pattern_keep
from refimpl.pruners.wanda import wanda_keep

VECTORS = {name: x for kernel in KERNELS for name, *x in vectors_of(kernel)}
FLAGS = (
    "ties",
    "dead input",
    "group of one",
    "longer than the window",
    "width not a multiple of 8",
    "one token",
    "an expert without tokens",
)
mask = partial(
    partial, lambda window, x: causal_bias(np.arange(len(x)), window, x.dtype)
)
CHANGES: dict[
    str, dict[str, Any]
] = {  # facts or inputs of a vector, as a wrong kernel takes them
    "rope.interleaved": {"interleaved": False},
    "rope.halves": {"interleaved": True},
    "attention.longer_than_the_window": {"bias": mask(2)},
    "attention.one_token_more_than_the_window": {"bias": mask(4)},
    "attention.sink": {"sink": lambda x: x - 1e9},
    "attention.scores_beyond_the_cap": {"cap": None},
    "norms.rms_eps_as_large_as_the_mean_square": {"eps": 0.0},
    "router.shares_sum_to_1": {
        "experts": {"num_experts": 8, "top_k": 1, "intermediate_size": 1}
    },
    "short_convolution.bias": {"conv.weight": lambda x: x[..., ::-1]},
    "delta_rule.state_forgotten_at_once": {"log_decay": np.zeros_like},
    "mamba2_scan.state_of_one_number": {"rate": np.zeros_like},
    "sparsegpt.2_4": {"pruner": {"pruner": "sparsegpt", "damping": 0.0}},
}
DECISIONS: dict[
    str, tuple[str, Any]
] = {  # with ties in another order, and groups along columns
    "wanda.ties": ("wanda.wanda_keep", lambda x, n: wanda_keep(x[:, ::-1], n)[:, ::-1]),
    "wanda.2_4_ties": ("decision.pattern_keep", lambda x, n: pattern_keep(x.T, n).T),
}
MISTAKES = {  # of the oracle's table, and a kernel that has them
    "softmax is over the queries": "attention",
    "the mask comes after the softmax": "attention",
    "eps is added outside the root": "norms",
    "the decay multiplies what a token puts in, too": "delta_rule",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "all"
    assert str(path) in ran("vectors", "all", "-o", path)
    return path


@cache
def right() -> Arrays:
    """What right kernels write."""
    every = [outputs_of(name, *x, np.float32) for name, x in VECTORS.items()]
    arrays = {step: x for outputs in every for step, x in outputs.items()}
    return {
        k: x.astype(np.float32) if x.dtype.kind == "f" else x for k, x in arrays.items()
    }


def test_all_are_small_and_say_why_they_are_there(folder: Path) -> None:
    assert sum(x.stat().st_size for x in folder.iterdir()) <= 2e6
    flags = set[str]()
    for kernel in KERNELS:
        facts = json.loads((folder / f"{kernel}.json").read_text("utf-8"))
        arrays = SafetensorsFile(folder / f"{kernel}.safetensors").arrays
        assert all(x["float32"] < 1e-4 for x in facts["tolerances"].values())
        for name, x in facts["vectors"].items():
            flags |= {*x["flags"]}
            assert {f"{name}.{k}" for k in x["function"][1:]} <= facts[
                "tolerances"
            ].keys()
            assert {f"{name}.{k}" for k in VECTORS[name][1]} <= arrays.keys()
    assert flags >= {*FLAGS}


@pytest.mark.parametrize("kernel", ["Haswell", "Prescott"])
def test_right_kernels_pass_with_other_products(
    kernel: str, folder: Path, tmp_path: Path
) -> None:
    path, env = tmp_path / "actual.safetensors", {"OPENBLAS_CORETYPE": kernel}
    subprocess.run([sys.executable, __file__, path], env=ENV | env, check=True)
    report = checked_file(folder, path)
    assert (report.verdict, report.dtype, len(report.steps)) == (
        "pass",
        "float32",
        len(right()),
    )


@pytest.mark.parametrize("what", [*CHANGES, *DECISIONS, *MISTAKES])
def test_a_wrong_kernel_fails(what: str, folder: Path, tmp_path: Path) -> None:
    names = (
        [what]
        if what in VECTORS
        else [x for x in VECTORS if x.startswith(MISTAKES[what])]
    )
    wrong, changes = Arrays(), CHANGES.get(what, {})
    mistake = next((x for _, words, x in VARIANTS if words == what), Mistake())
    with pytest.MonkeyPatch.context() as patch, mistake.made(None):  # type: ignore[arg-type]
        if what in DECISIONS:
            patch.setattr(f"refimpl.pruners.{DECISIONS[what][0]}", DECISIONS[what][1])
        for name in names:
            facts, inputs = VECTORS[name]
            inputs = {
                k: changes[k](x) if k in changes else x for k, x in inputs.items()
            }
            wrong |= outputs_of(name, facts | changes, inputs, np.float32)
    write_arrays(tmp_path / "actual.safetensors", right() | wrong)
    report = checked_file(folder, tmp_path / "actual.safetensors")
    failed = [x for x in report.steps if x.status == "divergent"]
    assert (report.verdict, {x.step for x in failed} <= wrong.keys()) == ("fail", True)
    assert failed[0].diagnosis.startswith("wrong: ")


def test_an_output_of_another_shape_fails(folder: Path, tmp_path: Path) -> None:
    step = "rope.halves.out"
    actual = write_arrays(
        tmp_path / "actual.safetensors", right() | {step: right()[step][0]}
    )
    first = checked_file(folder, actual).first
    assert first is not None
    assert first.fault == "shape [2, 5, 8], expected [1, 2, 5, 8]"
    assert (first.step, first.diagnosis) == (step, "")


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, actual = tmp_path / "vectors", tmp_path / "actual.safetensors"
    ran("vectors", "wanda", "-o", path)
    check, keep = partial(run, "check", path, actual), "wanda.ties.keep"
    for code, arrays in {
        0: right(),
        1: {keep: ~right()[keep]},
        3: {keep: right()[keep]},
    }.items():
        write_arrays(actual, arrays)
        assert check().code == code
    assert check("--only", "wanda.ties.*").out.startswith("vectors     vectors\n")
    assert "names such as wanda" in refused("check", path, actual, "--only", "rope.*")
    write_arrays(actual, {"logits": right()["rope.halves.out"]})
    assert "in the file (logits)" in refused("check", path, actual)
    facts = (path / "wanda.json").read_text("utf-8").replace('"spec": ', '"spec": 1')
    (path / "wanda.json").write_text(facts, "utf-8")
    assert "run refimpl vectors again" in refused("check", path, actual)
    assert "exists" in refused("vectors", "all", "-o", path)
    assert "or wanda or" in refused("vectors", "wand", "-o", tmp_path / "new")
    monkeypatch.setattr(vectors, "write_arrays", None)
    assert run("vectors", "wanda", "-o", tmp_path / "new").code == 70
    assert {x.name for x in tmp_path.iterdir()} == {"actual.safetensors", "vectors"}


if __name__ == "__main__":
    write_arrays(Path(sys.argv[1]), right())
