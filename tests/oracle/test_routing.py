"""The oracle on mixtures of experts: a token at the router's edge may go to another expert."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from candidates import Arrays, StoredModel, written
from checkpoints import config_of, write
from crafted_cases import copied_tensors
from gates import CASES, NOT_RESOLVED, model_of

from refimpl import read_model
from refimpl.loading.samples import Tokens
from refimpl.model.experts import preferences
from refimpl.model.mixers.parts import affine
from refimpl.model.ops import Array
from refimpl.oracle.candidates import transformers_sources
from refimpl.oracle.case import Case, case_inputs, computed_case
from refimpl.oracle.check import check
from refimpl.oracle.dense_steps import StepInputs, unpacked
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import ARITHMETIC
from refimpl.oracle.steps import every_array, steps

FORWARD = Recipe(only=("embed", "blocks.*", "final_norm", "logits"))
STEP = "blocks.0.router.keep"


@cache
def mixture(fixture: str, recipe: Recipe = FORWARD) -> Case:
    ids = np.random.default_rng(0).integers(5, 40, (2, 24))
    return computed_case(
        model_of(fixture), Tokens(ids, "drawn uniformly", "ids"), recipe
    )


def with_another_expert(case: Case, rank: int) -> Array:
    """The choice in block 0, where the token that is nearest to the edge (or further) changes."""
    experts, weights = case.model.config.experts, case.model.block(0, np.float64)
    assert experts is not None
    read = case.model.config.blocks[0].mlp_reads[-1]
    logits = affine(case.expected[f"blocks.0.{read}"], weights, "router")
    score, _ = preferences(logits, experts, weights.get("router.correction"))
    chosen = unpacked(case.expected[STEP], experts.num_experts)
    lowest, highest = np.where(chosen, score, np.inf), np.where(chosen, -np.inf, score)
    gap = lowest.min(-1) - highest.max(-1)
    token = np.unravel_index(np.argsort(gap, axis=None)[rank], gap.shape)
    chosen[(*token, lowest[token].argmin())] = False
    chosen[(*token, highest[token].argmax())] = True
    return np.packbits(chosen, axis=-1)


def candidate(
    case: Case, choice: Array, recipe: Recipe, dtype: str = "bfloat16"
) -> Arrays:
    """In 16 bits, with this choice in block 0."""
    model, ids = (
        case.model.as_kind(StoredModel, kind=ARITHMETIC[dtype]),
        case.inputs["token_ids"],
    )
    arrays = every_array(StepInputs(model, recipe, ids, "float32", {STEP: choice}))
    return written(case, arrays | {STEP: choice}, dtype)


@pytest.mark.parametrize(
    "fixture",
    [
        "qwen2_moe",
        *(
            pytest.param(x, marks=pytest.mark.thorough)
            for x in ("mixtral", "phimoe", "gemma4_experts")
        ),
    ],
)
def test_a_token_at_the_edge_may_go_to_another_expert(fixture: str) -> None:
    """What follows is judged on the candidate's own choice."""
    case = mixture(fixture)
    actual = candidate(case, with_another_expert(case, 0), FORWARD)
    report = check(case, actual)
    assert report.first is None
    (turned,) = (x for x in report.steps if x.step == STEP)
    assert len(turned.near_ties) <= 1  # none if its own states lead to that expert
    status = {x.step: x.status for x in report.steps}
    judged = {
        status[x] for x in ("blocks.0.mlp_out", "blocks.1.attn_norm", "final_norm")
    }
    assert judged <= {
        "pass",
        "unresolved",
    }  # in bfloat16 phimoe's later blocks are not resolved
    if fixture == "qwen2_moe":  # float32 has no such excuse
        first = check(case, {STEP: actual[STEP]}, (STEP,), "float32").first
        assert first is not None


@pytest.mark.parametrize("fixture", ["qwen2_moe", "deepseek_v3"])
def test_scores_that_rounding_makes_equal_may_be_chosen_among(
    fixture: str, tmp_path: Path
) -> None:
    """Logits are apart in their own units, and their softmax or sigmoid is not."""
    tensors, ids = (
        copied_tensors(fixture),
        np.random.default_rng(0).integers(5, 40, (2, 24)),
    )
    for name, x in tensors.items():
        x *= 1e-3 if ".mlp.gate." in name else 1
    model = read_model(write(tmp_path / "model", tensors, config_of(fixture)))
    case = computed_case(model, Tokens(ids, "drawn uniformly", "ids"), FORWARD)
    own = every_array(case_inputs(case, rounded=ARITHMETIC["float16"]))
    actual = written(case, own, "float16")
    routers = [x for x in actual if x.endswith(".router.keep")]
    assert any(not np.array_equal(actual[x], case.expected[x]) for x in routers)
    assert check(case, actual, dtype="float16").first is None
    assert check(case, actual, tuple(routers), "float32").first is not None


@pytest.mark.usefixtures("few_attempts")
def test_a_clear_token_may_not() -> None:
    """That is named at the router, and does not hide what follows."""
    case = mixture("qwen2_moe")
    report = check(case, candidate(case, with_another_expert(case, -1), FORWARD))
    assert [x.step for x in report.steps if x.status == "divergent"] == [STEP]
    wrong = case.expected[STEP] | 0b1000_0000  # one expert more for some tokens
    first = check(case, {**case.expected, STEP: wrong}, dtype="bfloat16").first
    assert first is not None
    assert (first.step, first.diagnosis[:5]) == (STEP, "wrong")


def test_a_choice_that_was_not_made_is_found_at_what_follows() -> None:
    case = mixture("qwen2_moe")
    actual = candidate(case, with_another_expert(case, 0), FORWARD, "float16")
    first = check(case, actual | {STEP: case.expected[STEP]}).first
    assert first is not None
    assert first.step == "blocks.0.mlp_out"


@pytest.mark.thorough
def test_other_right_arithmetic_in_16_bits_does_not_diverge() -> None:
    """Nor do experiments and pruners, whose states are routed anew."""
    recipe = Recipe(bases=("owl",), draws=1, pattern="")
    case = mixture("qwen2_moe", recipe)
    actual = candidate(case, with_another_expert(case, 0), recipe)
    report = check(case, actual, dtype="bfloat16")
    assert report.first is None


def test_without_its_choice_a_candidate_is_inconclusive() -> None:
    case = mixture("qwen2_moe")
    actual = candidate(case, with_another_expert(case, 0), FORWARD, "float16")
    del actual[STEP]
    report = check(case, actual)
    assert (report.verdict, report.first) == ("not judged", None)
    status = {x.step: x.status for x in report.steps}
    assert status["blocks.0.mlp_norm"] == "pass"
    assert status["blocks.0.mlp_out"] == "conditional"
    wrong = actual | {
        "blocks.1.attn_norm": -actual["blocks.1.attn_norm"]
    }  # read what was written
    (alone,) = check(case, wrong, ("blocks.1.attn_norm",)).steps
    assert alone.status == "divergent"
    between = ("blocks.0.mlp_out", "blocks.0.resid_post", "blocks.1.resid_pre")
    some = {k: x for k, x in actual.items() if k not in between}
    (alone,) = check(case, some, ("blocks.1.attn_norm",)).steps
    assert alone.status == "conditional"  # right or wrong, it follows from that choice


@pytest.mark.parametrize(
    "fixture",
    [
        pytest.param(x, marks=() if x == "llama" else pytest.mark.thorough)
        for x in CASES
    ],
)
def test_what_hooks_take_is_judged_in_bfloat16(fixture: str) -> None:
    """A right candidate passes, or a kind is not judged; without the router's choice none does."""
    case = mixture(fixture)
    model, ids = (
        case.model.as_kind(StoredModel, kind=ARITHMETIC["bfloat16"]),
        case.inputs["token_ids"],
    )
    right = written(case, steps(model, ids, FORWARD, np.float32), "bfloat16")
    some = {x: right[x] for x in case.expected if x in transformers_sources(case.model)}
    judged = "not judged" if fixture in NOT_RESOLVED else "pass"
    assert check(case, some, tuple(some)).verdict == judged
    without = {k: x for k, x in some.items() if not k.endswith(".router.keep")}
    if case.model.config.experts is not None:
        assert check(case, without, tuple(some)).verdict == "not judged"
    wrong = {
        k: x * -1 if k.endswith((".attn_norm", ".attn_out")) else x
        for k, x in some.items()
    }
    assert check(case, wrong, tuple(some)).verdict == "fail"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_an_activation_in_a_mixture_is_resolved_in_16_bits(dtype: str) -> None:
    """gpt-oss multiplies by the sigmoid of 1.702 x; here by that of x.

    Without what the MLP read, bfloat16 does not resolve it, and it never passes.
    """
    case, step = mixture("gpt_oss"), "blocks.0.mlp_out"
    choices = {k: x for k, x in case.expected.items() if k.endswith("router.keep")}
    config = replace(case.model.config, activation="silu")
    model, ids = replace(case.model, config=config), case.inputs["token_ids"]
    arrays = every_array(StepInputs(model, FORWARD, ids, "float32", choices))
    wrong = written(case, arrays, dtype) | choices
    first = check(case, wrong).first
    assert first is not None
    assert (first.step, first.error > 1.5 * first.tolerance) == (step, True)
    (alone,) = check(case, {step: wrong[step], **choices}, (step,)).steps
    assert alone.status == ("divergent" if dtype == "float16" else "unresolved")


def test_a_signal_of_blocks_with_other_linears_is_judged() -> None:
    case = mixture("lfm2", Recipe(bases=("alphapruning",), pattern=""))
    right, step = written(case, case.expected, "float32"), "alphapruning.signal"
    assert {x.status for x in check(case, right, ("alphapruning.*",)).steps} == {"pass"}
    for change in (np.sqrt, np.nan_to_num):
        wrong = right | {step: change(right[step])}
        assert getattr(check(case, wrong).first, "step", "") == step
