"""`refimpl fuzz`: right programs pass; a wrong one fails on the smallest case that shows why."""

import sys
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from candidates import needs_torch, write_arrays, written
from gates import GATES, worst_token
from program import refused, run
from transformers_forward import transformers_forward

from refimpl import forward
from refimpl.loading.families import FAMILIES
from refimpl.oracle.case import Case, read_case
from refimpl.oracle.steps import steps
from refimpl.testing import fuzz
from refimpl.testing.fuzz import Fuzzing

UNJUDGED = "write the steps that are missing, or name those that you write with --only"
THOROUGH = pytest.mark.thorough
COPY = ["cp", "{case}/expected.safetensors", "{out}"]
EMBED = """import sys; from safetensors.numpy import load_file, save_file
save_file({"embed": load_file(sys.argv[1] + "/expected.safetensors")["embed"]}, sys.argv[2])"""


def changed(case: Case, mistake: str) -> dict[str, Any]:
    """Facts of a model with a mistake that shows in some configurations alone."""
    config, off = (
        case.model.config,
        {"logit_scale": 1.01 * case.model.config.logit_scale},
    )
    wide = [replace(x, window=x.window and x.window + 1) for x in config.blocks]
    changes: dict[str, tuple[bool, dict[str, Any]]] = {
        "window": (True, {"blocks": tuple(wide)}),
        "small eps": (config.norm_eps < 2e-5, {"norm_eps": 0.0}),
        "tied": (bool(case.model.config_file.get("tie_word_embeddings")), off),
        "one token": (case.inputs["token_ids"].shape[1] == 1, off),
    }
    holds, facts = changes.get(mistake, (False, {}))
    return facts if holds else {}


def fuzzed(
    mistake: str, family: str, output: Path, **plan: Any
) -> tuple[str, list[str]]:
    """The verdict on a program that runs in this process, and what is said."""

    def run_here(words: list[str], **_: Any) -> CompletedProcess[str]:
        case = read_case(words[1])
        model = replace(
            case.model, config=replace(case.model.config, **changed(case, mistake))
        )
        arrays = steps(model, case.inputs["token_ids"], case.recipe, np.float32)
        write_arrays(Path(words[2]), written(case, arrays, "float32"))
        return CompletedProcess(words, 0, "", "")

    lines, options = list[str](), Fuzzing(family, seed=5, **plan)
    with patch.object(fuzz.subprocess, "run", run_here):
        return fuzz.fuzz(["", "{case}", "{out}"], options, output, lines.append), lines


@pytest.mark.parametrize(
    "family", ["llama", *(pytest.param(x, marks=THOROUGH) for x in FAMILIES)]
)
def test_a_right_program_passes(family: str, tmp_path: Path) -> None:
    every = [f"case {n}: pass" for n in range(4)]
    assert fuzzed("", family, tmp_path / "kept", cases=4) == ("pass", every)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mistake", "family", "smallest", "why"),
    [
        (
            "tied",
            "llama",
            '1, "tokens": 1, "tie_word_embeddings": true}',
            "multiplied by 1.01",
        ),
        ("one token", "llama", '1, "samples": 1, "tokens": 1}', "multiplied by 1.01"),
        pytest.param("window", "mistral", '"tokens": 6}', "window is", marks=THOROUGH),
        pytest.param(
            "small eps", "llama", '1, "rms_norm_eps": 1e-06}', "eps", marks=THOROUGH
        ),
    ],
)
def test_a_wrong_program_fails_on_the_smallest_case(
    mistake: str, family: str, smallest: str, why: str, tmp_path: Path
) -> None:
    verdict, lines = fuzzed(mistake, family, kept := tmp_path / "kept")
    least, again, *reasons = lines[-5:]
    assert (verdict, least.endswith(smallest), lines) == ("fail", True, lines)
    assert why in "\n".join(reasons)
    assert again == f"again: '' {kept / 'case'} {kept / 'actual.safetensors'}"
    assert run("check", kept / "case", kept / "actual.safetensors").code == 1
    assert fuzzed(mistake, family, tmp_path / "b")[1][:-5] == lines[:-5]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fuzz", "--family", "llama", "-o", "kept", "--cases", 2]
    python = [sys.executable, "-c"]
    assert (
        run(*words, "--only", "logits", "--", *COPY).out
        == "case 0: pass\ncase 1: pass\n"
    )
    some = run(*words, "--", *python, EMBED, "{case}", "{out}")
    assert (some.code, some.out) == (
        3,
        f"case 0: not judged\ncase 1: not judged\n{UNJUDGED}\n",
    )
    for wrong, message in (
        (["--", "./absent"], "./absent: cannot be read"),
        (["--family", "lama", "--", *COPY], "lama: no such"),
        (["--only", "x", "--", *COPY], "--only x: no step"),
        (["-o", "absent/new", "--", *COPY], "absent is missing"),
    ):
        assert message in refused(*words, *wrong)
    assert not any(tmp_path.iterdir())
    crash = run(*words, "--", *python, "raise SystemExit('no heads')", "{case}")
    assert (crash.code, crash.out.splitlines()[-2:]) == (1, ["exit code 1", "no heads"])
    assert {x.name for x in (tmp_path / "kept").iterdir()} == {"case", "model"}
    assert f"{tmp_path / 'kept'} exists" in refused(*words, "--", *COPY)


@needs_torch
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_computes_the_same(family: str, tmp_path: Path) -> None:
    plan, differences = Fuzzing(family, seed=7), list[float]()
    for number, case in enumerate(islice(plan.drawn(), 8)):
        plan.write(case, tmp_path / str(number))
        read = read_case(tmp_path / str(number) / "case")
        model, ids = read.model, read.inputs["token_ids"]
        attention = (
            "sdpa" if plan.entries(case).get("alibi") else "eager"
        )  # as the fixtures
        with suppress(Exception):  # transformers runs fewer configurations
            theirs = transformers_forward(model, "float64", attention)(ids)["logits"]
            differences.append(
                worst_token(forward(model, ids, dtype="f8").logits, theirs)
            )
    assert differences
    assert max(differences) < GATES["float64"]
