"""The forwards that travel with the package: mixtures, sinks and ALiBi, which core cases lack."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES

from refimpl.model.model import Model
from refimpl.oracle.case import Case, read_case
from refimpl.oracle.case_folders import FORWARDS
from refimpl.oracle.check import Report, check
from refimpl.oracle.steps import steps

CASES = {name: read_case(FIXTURES / "forwards" / name) for name in FORWARDS}


def judged(case: Case, model: Model) -> Report:
    """A candidate in float32 that computes with a model."""
    arrays = steps(model, case.inputs["token_ids"], case.recipe, np.float32)
    return check(case, arrays, dtype="float32")


def configured(**changes: Any) -> Callable[[Model], Model]:
    return lambda model: replace(model, config=replace(model.config, **changes))


def without_sinks(model: Model) -> Model:
    weights = {name: x for name, x in model.weights.items() if not name.endswith("sinks")}
    return replace(model, weights=weights)


def one_expert_fewer(model: Model) -> Model:
    return configured(experts=replace(model.config.experts, top_k=1))(model)


MISTAKES: dict[str, tuple[str, Callable[[Model], Model], str]] = {
    "sinks omitted": ("gpt_oss", without_sinks, "blocks.0.attn_out"),
    "one expert fewer": ("gpt_oss", one_expert_fewer, "blocks.0.router.keep"),
    "gate not limited": ("gpt_oss", configured(gate_limit=None), "blocks.0.mlp_out"),
    "ALiBi omitted": ("bloom", configured(alibi=None), "blocks.0.attn_out"),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_right_candidate_passes(name: str) -> None:
    assert judged(CASES[name], CASES[name].model).verdict == "pass"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_at_its_step(mistake: str) -> None:
    name, change, step = MISTAKES[mistake]
    first = judged(CASES[name], change(CASES[name].model)).first
    assert first is not None
    assert first.step == step
