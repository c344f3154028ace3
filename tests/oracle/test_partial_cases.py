"""Cases of some steps and tokens, as they are made of real models."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from candidates import write_arrays
from conftest import FIXTURES
from gates import case_of
from program import ran, refused, run
from refusals import refusal_of

from refimpl.loading.samples import Tokens
from refimpl.model.model import Model
from refimpl.oracle.case import Case, make_case, read_case
from refimpl.oracle.check import check
from refimpl.oracle.steps import steps
from refimpl.oracle.truth import own_errors

FORWARD = ("blocks.*", "logits")


def partial(folder: Path, *only: str) -> Case:
    whole = case_of("llama")
    recipe = replace(whole.recipe, only=only)
    tokens = Tokens(whole.inputs["token_ids"], "of the case", "ids")
    return read_case(make_case(whole.model, tokens, recipe, folder / "part").folder)


@pytest.fixture(scope="module")
def forwards(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return partial(tmp_path_factory.mktemp("forwards"), *FORWARD)


def test_it_has_the_steps_that_are_asked_for(forwards: Case) -> None:
    whole = case_of("llama")
    assert list(forwards.expected) == [
        x for x in whole.expected if x.startswith("blocks.") or x == "logits"
    ]
    for step, value in forwards.expected.items():
        np.testing.assert_allclose(
            value, whole.expected[step], rtol=1e-9, atol=1e-12, err_msg=step
        )
    assert list(forwards.inputs) == ["token_ids"]
    facts = json.loads((forwards.folder / "case.json").read_text())
    assert facts["recipe"]["only"] == list(FORWARD)
    assert {x.name for x in forwards.folder.iterdir() if x.stat().st_size > 20} == {
        "case.json",
        "inputs.safetensors",
        "expected.safetensors",
    }


def test_errors_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a case in memory; those of a folder that has them are not."""
    case, small = case_of("llama"), replace(case_of("opt"), errors={})
    own = own_errors(small, "float32")
    monkeypatch.setattr("refimpl.oracle.truth._measured", None)
    assert check(case, case.expected, dtype="float32").verdict == "pass"
    assert own_errors(small, "float32") is own
    refusal_of(
        check, case, case.expected, dtype="float8", says="dtype float8 is not supported"
    )


def test_a_check_of_one_step_moves_no_allocation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tolerances of other steps are not computed: that of an allocation takes the longest."""
    case = case_of("llama")
    monkeypatch.setattr("refimpl.oracle.truth.moved_by", None)
    assert check(case, case.expected, ("blocks.0.q",)).verdict == "pass"
    with pytest.raises(TypeError):
        check(case, case.expected, ("owl.base",))


def test_a_check_of_some_steps_computes_nothing_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No later block, and no statistics of all; nothing, if the experiments are the case's."""
    case, blocks, block = case_of("llama"), list[int](), Model.block
    monkeypatch.setattr(
        Model, "block", lambda x, i, *y: blocks.append(i) or block(x, i, *y)
    )
    asked = {"blocks.1.q": [0, 1], "logits": [0, 1, 2, 3], "perturbed.0.drift": []}
    for step, read in asked.items():
        assert check(case, case.expected, (step,)).verdict == "pass"
        assert blocks == read
        blocks.clear()


def test_an_experiment_brings_its_noise_and_states(tmp_path: Path) -> None:
    whole, case = case_of("llama"), partial(tmp_path, "coarse.1.*", "embed")
    assert set(case.inputs) == {"token_ids", "noise", "noise.1"}
    names = [
        x for x in whole.expected if x.endswith("resid_post") or x.startswith("coarse.")
    ]
    assert sorted(case.expected) == sorted(["embed", *names])
    for step, value in case.expected.items():
        np.testing.assert_allclose(
            value, whole.expected[step], rtol=1e-9, atol=1e-12, err_msg=step
        )
    arrays = steps(case.model, case.inputs["token_ids"], case.recipe, np.float32)
    assert check(case, arrays, dtype="float32").verdict == "pass"
    first = check(case, arrays | {"coarse.1.drift": -arrays["coarse.1.drift"]}).first
    assert first is not None
    assert first.step == "coarse.1.drift"


def test_the_command_makes_and_checks_one(tmp_path: Path, forwards: Case) -> None:
    words = ("--tokens", "random", "--samples", 1, "--seq-len", 8, "--only", "blocks.*")
    out = ran("case", "make", FIXTURES / "opt", "-o", tmp_path / "opt", *words)
    assert "30 steps of opt" in out
    actual = write_arrays(tmp_path / "actual.safetensors", dict(forwards.expected))
    assert run("check", forwards.folder, actual).code == 0


def test_what_such_a_case_cannot_be_is_refused(tmp_path: Path, forwards: Case) -> None:
    make = (
        "case",
        "make",
        FIXTURES / "opt",
        "-o",
        tmp_path / "new",
        "--tokens",
        "random",
        "--samples",
        1,
        "--seq-len",
        8,
    )
    assert "no step of the forward" in refused(*make, "--only", "wanda.*")
    assert "no step of the forward" in refused(
        *make, "--only", "blocks.*", "--only", "blocks.9.*"
    )
    assert "samples of 1 token" in refused(*make[:-1], 1)
    assert not (tmp_path / "new").exists()
