"""The oracle on every family without a stored case: cases made on the fly from the fixtures."""

from pathlib import Path

import pytest
from candidates import CASE_NAMES, stepwise_steps, with_one_number_off, written
from gates import CASES, GATES, LAYOUTS, errors_of, expected_of, model_of

from refimpl.loading.families import FAMILIES
from refimpl.loading.samples import Tokens
from refimpl.oracle.case import make_case, read_case
from refimpl.oracle.check import check
from refimpl.oracle.recipe import Recipe

FIXTURE_OF = {model_of(case).config.family: case for case in reversed(CASES)}
STORED = {model_of(name).config.family for name in CASE_NAMES}
OTHERS = [name for name in FAMILIES if name not in STORED]
WHOLE = (
    "granite",
    "deepseek_v3",
    "qwen3_5_text",
)  # errors of the method, and a check: seconds

EACH_FAMILY = [
    pytest.param(x, marks=() if FIXTURE_OF[x] in LAYOUTS else pytest.mark.thorough)
    for x in OTHERS
]


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_a_case_of_every_family_can_be_made(family: str, tmp_path: Path) -> None:
    name = FIXTURE_OF[family]
    ids, truth = expected_of(name)
    tokens, model = Tokens(ids, "of the fixture", "ids"), model_of(name)
    pattern = "" if model.config.experts else "2:4"  # experts may see no token then
    whole = Recipe(bases=("owl",), draws=1, pattern=pattern)
    forward = Recipe(only=("embed", "blocks.*", "final_norm", "logits"))
    make_case(model, tokens, whole if family in WHOLE else forward, tmp_path / name)
    case = read_case(tmp_path / name)
    errors = errors_of(case.expected, truth)
    assert {
        point: error for point, error in errors.items() if not error < GATES["float64"]
    } == {}
    if family not in WHOLE:
        return
    actual = written(case, stepwise_steps(case, "float32"), "float32")
    report = check(case, actual)
    rest = [x.step for x in report.steps if x.status != "pass"]
    assert (
        report.first is None
    )  # weights of a file in 16 bits may be rounded the other way
    assert all(
        step.startswith("sparsegpt") and "perplexity" in step for step in rest
    ), rest
    wrong = with_one_number_off(actual, "blocks.0.mlp_out")
    found = check(case, wrong, ("blocks.0.mlp_out",)).first
    assert found is not None
    assert found.step == "blocks.0.mlp_out"
