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
from refimpl.model.forward import forward
from refimpl.model.model import Model
from refimpl.oracle.case import Case, make_case, read_case
from refimpl.oracle.check import check
from refimpl.oracle.own_errors import own_errors
from refimpl.oracle.steps import steps

FORWARD = ("blocks.*", "logits")


def partial(folder: Path, *only: str, sample_tokens: int = 0) -> Case:
    whole = case_of("llama")
    recipe = replace(whole.recipe, only=only, sample_tokens=sample_tokens)
    tokens = Tokens(whole.inputs["token_ids"], "of the case", "ids")
    return read_case(make_case(whole.model, tokens, recipe, folder / "part").folder)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return partial(tmp_path_factory.mktemp("sampled"), *FORWARD, sample_tokens=5)


def test_it_has_the_tokens_and_steps_that_are_asked_for(sampled: Case) -> None:
    whole, places = case_of("llama"), [0, 3, 6, 8, 11]
    assert list(sampled.expected) == [
        x for x in whole.expected if x.startswith("blocks.") or x == "logits"
    ]
    for step, value in sampled.expected.items():
        truth = whole.expected[step][..., places, :]
        np.testing.assert_allclose(value, truth, rtol=1e-9, atol=1e-12, err_msg=step)
    assert list(sampled.inputs) == ["token_ids"]
    facts = json.loads((sampled.folder / "case.json").read_text())
    assert (facts["recipe"]["only"], facts["recipe"]["sample_tokens"]) == (list(FORWARD), 5)
    assert {x.name for x in sampled.folder.iterdir() if x.stat().st_size > 20} == {
        "case.json", "inputs.safetensors", "expected.safetensors",
    }  # fmt: skip


def test_errors_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a case in memory; those of a folder that has them are not."""
    case, small = case_of("llama"), replace(case_of("opt"), errors={})
    own = own_errors(small, "float32")
    monkeypatch.setattr("refimpl.oracle.own_errors._measured", None)
    for stepwise in (True, False):
        assert check(case, case.expected, dtype="float32", stepwise=stepwise).verdict == "pass"
    assert own_errors(small, "float32") is own
    refusal_of(check, case, case.expected, dtype="float8", says="dtype float8 is not supported")


def test_a_check_of_one_step_moves_no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tolerances of other steps are not computed: that of an allocation takes the longest."""
    case = case_of("llama")
    monkeypatch.setattr("refimpl.oracle.truth.moved_by", None)
    assert check(case, case.expected, ("blocks.0.q",)).verdict == "pass"
    with pytest.raises(TypeError):
        check(case, case.expected, ("owl.base",))


@pytest.mark.parametrize("way", ["own inputs", "stepwise", "chained"])
def test_a_check_of_some_steps_computes_nothing_behind_them(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later block, and no statistics of all; nothing, if the experiments are the case's."""
    case, blocks, block = case_of("llama"), list[int](), Model.block
    monkeypatch.setattr(Model, "block", lambda x, i, *y: blocks.append(i) or block(x, i, *y))
    asked = {"blocks.1.q": [0, 1], "logits": [0, 1, 2, 3], "perturbed.0.drift": []}
    for step, read in asked.items():
        if (way, read) != ("stepwise", []):
            options = {x: x == way for x in ("stepwise", "chained")}
            assert check(case, case.expected, (step,), **options).verdict == "pass"
            assert blocks == read
            blocks.clear()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_a_candidate_may_give_all_tokens_or_those_of_the_case(
    sampled: Case, whole: bool, dtype: str
) -> None:
    ids, kind = sampled.inputs["token_ids"], np.float64 if dtype == "float64" else np.float32
    trace = dict(forward(sampled.model, ids, trace=True, dtype=kind).trace)
    if not whole:
        trace = {k: sampled.recipe.sampled(x, ids.shape[1]) for k, x in trace.items()}
    report = check(sampled, trace, dtype=dtype)
    assert report.verdict != "fail"
    assert dtype == "bfloat16" or report.verdict == "pass"
    wrong = dict(trace)
    wrong["blocks.2.v"] = -wrong["blocks.2.v"]
    first = check(sampled, wrong, dtype=dtype).first
    assert first is not None
    assert first.step == "blocks.2.v"


def test_an_experiment_brings_its_noise_and_states(tmp_path: Path) -> None:
    whole, case = case_of("llama"), partial(tmp_path, "coarse.1.*", "embed")
    assert set(case.inputs) == {"token_ids", "noise", "noise.1"}
    names = [x for x in whole.expected if x.endswith("resid_post") or x.startswith("coarse.")]
    assert sorted(case.expected) == sorted(["embed", *names])
    for step, value in case.expected.items():
        np.testing.assert_allclose(value, whole.expected[step], rtol=1e-9, atol=1e-12, err_msg=step)
    arrays = steps(case.model, case.inputs["token_ids"], case.recipe, np.float32)
    assert check(case, arrays, dtype="float32").verdict == "pass"
    first = check(case, arrays | {"coarse.1.drift": -arrays["coarse.1.drift"]}).first
    assert first is not None
    assert first.step == "coarse.1.drift"


def test_the_command_makes_and_checks_one(tmp_path: Path, sampled: Case) -> None:
    words = ("--tokens", "random", "--samples", 1, "--seq-len", 8, "--only", "blocks.*")
    out = ran("case", "make", FIXTURES / "opt", "-o", tmp_path / "opt", *words,
              "--sample-tokens", 2)  # fmt: skip
    assert "30 steps of opt" in out
    actual = write_arrays(tmp_path / "actual.safetensors", dict(sampled.expected))
    assert run("check", sampled.folder, actual).code == 0


def test_what_such_a_case_cannot_be_is_refused(tmp_path: Path, sampled: Case) -> None:
    make = ("case", "make", FIXTURES / "opt", "-o", tmp_path / "new", "--tokens", "random",
            "--samples", 1, "--seq-len", 8)  # fmt: skip
    assert "no step of the forward" in refused(*make, "--only", "wanda.*")
    assert "no step of the forward" in refused(*make, "--only", "blocks.*", "--only", "blocks.9.*")
    assert "add --only" in refused(*make, "--sample-tokens", 3)
    refused(*make, "--only", "blocks.*", "--sample-tokens", -1)
    assert "samples of 1 token" in refused(*make[:-1], 1)
    assert not (tmp_path / "new").exists()
    arrays = dict(sampled.expected)
    refusal_of(check, sampled, arrays, stepwise=True, says="holds some of the steps")
