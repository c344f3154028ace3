"""Forwards of families: mixtures, sinks and ALiBi, which core cases lack."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refimpl.loading.families import FAMILIES
from refimpl.model.model import Model
from refimpl.oracle.case import Case, forward_case, read_case
from refimpl.oracle.case_folders import family_model
from refimpl.oracle.check import Report, check
from refimpl.oracle.steps import steps
from refimpl.oracle.truth import truth_of


@pytest.fixture(scope="module")
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    return read_case(
        forward_case(request.param, tmp_path_factory.mktemp("cases") / "case").path
    )


def judged(case: Case, model: Model) -> Report:
    """A candidate in float32 that computes with a model."""
    arrays = steps(model, case.inputs["token_ids"], case.recipe, np.float32)
    return check(case, arrays, dtype="float32")


def configured(**changes: Any) -> Callable[[Model], Model]:
    return lambda model: replace(model, config=replace(model.config, **changes))


def without_sinks(model: Model) -> Model:
    weights = {
        name: x for name, x in model.weights.items() if not name.endswith("sinks")
    }
    return replace(model, weights=weights)


def one_expert_fewer(model: Model) -> Model:
    return configured(experts=replace(model.config.experts, top_k=1))(model)


MISTAKES: dict[str, tuple[str, Callable[[Model], Model], str]] = {
    "sinks omitted": ("gpt_oss", without_sinks, "blocks.0.attn_out"),
    "one expert fewer": ("gpt_oss", one_expert_fewer, "blocks.0.router.keep"),
    "gate not limited": ("gpt_oss", configured(gate_limit=None), "blocks.0.mlp_out"),
    "ALiBi omitted": ("bloom", configured(alibi=None), "blocks.0.attn_out"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_model_in_the_package(family: str) -> None:
    folder = family_model(family)
    assert folder is not None
    assert json.loads((folder / "config.json").read_text())["model_type"] == family


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(x, marks=[] if x in ("bloom", "gpt_oss") else pytest.mark.thorough)
        for x in FAMILIES
    ],
    indirect=True,
)
def test_a_right_candidate_passes(case: Case) -> None:
    assert judged(case, case.model).verdict == "pass"


@pytest.mark.parametrize(
    ("case", "change", "step"),
    MISTAKES.values(),
    ids=MISTAKES.keys(),
    indirect=["case"],
)
def test_a_mistake_is_found_at_its_step(
    case: Case, change: Callable[[Model], Model], step: str
) -> None:
    first = judged(case, change(case.model)).first
    assert first is not None
    assert first.step == step


@pytest.mark.parametrize("case", ["llama"], indirect=True)
def test_the_forward_alone_is_computed(case: Case) -> None:
    truth = truth_of(case, case.expected, "float32")
    assert truth.missing.keys() == case.expected.keys()
