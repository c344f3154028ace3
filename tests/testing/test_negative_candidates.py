"""No case accepts a candidate that is wrong on purpose, in any dtype."""

from dataclasses import replace
from functools import cache
from itertools import cycle

import numpy as np
import pytest
from candidates import CASE_NAMES, by_turns, written
from crafted_cases import CRAFTED, oracle_case
from gates import model_of
from negative_candidates import CHANGES, negative_candidates, trivial_answers

from refimpl.loading.samples import Tokens
from refimpl.oracle.case import Case, computed_case
from refimpl.oracle.case_folders import CORE
from refimpl.oracle.check import _unchanged, check
from refimpl.oracle.measures import EPS
from refimpl.oracle.recipe import Recipe

WAYS = [*CHANGES, "the last block left out"]


DTYPES = ("bfloat16", "float32", "float16", "float64")
SLOWER_WAYS = [pytest.param(x, marks=pytest.mark.thorough) for x in ("stepwise", "chained")]
MECHANISMS = ("mixtral", "qwen3_5", "granitemoehybrid", "deepseek_v2", "gemma4_small")
OTHERS = [name for name in (*CASE_NAMES, *CRAFTED) if name not in CORE]


@pytest.mark.parametrize("stepwise", [False, pytest.param(True, marks=pytest.mark.thorough)])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("opt", "float32"),
        ("phi3", "float16"),
        *(
            pytest.param(x, y, marks=pytest.mark.thorough)
            for x, y in zip(("llama", *OTHERS), cycle(DTYPES), strict=False)
        ),
    ],
)
def test_no_case_accepts_a_wrong_candidate(name: str, stepwise: bool, dtype: str) -> None:
    """Each diverges, from the tokens and step by step.

    Each core case is tried in one dtype, the rest, and step by step all, in a tier.
    """
    case = oracle_case(name)
    wrong = negative_candidates(case, dtype)
    same = {"permuted blocks"} if case.model.config.num_blocks == 1 else set()
    assert list(wrong) == [way for way in WAYS if way not in same]
    verdicts = {
        way: check(case, arrays, dtype=dtype, stepwise=stepwise).verdict
        for way, arrays in wrong.items()
    }
    assert set(verdicts.values()) == {"fail"}, verdicts


@cache
def made_here(name: str) -> Case:
    """A case of the wheel or of a mechanism, computed by the kernel of BLAS that judges it.

    Stored values are Haswell's, from which float64 by other kernels differs by up to 3e-15.
    """
    if name in CORE:
        stored = oracle_case(name)
        ids, recipe = stored.inputs["token_ids"], stored.recipe
        return computed_case(stored.model, Tokens(ids, "of the case", "ids"), recipe)
    ids = np.random.default_rng(0).integers(3, 30, (2, 24))
    recipe = Recipe(bases=("owl", "dlp"), pattern="2:4")
    return computed_case(model_of(name), Tokens(ids, "drawn uniformly", "ids"), recipe)


@pytest.mark.parametrize("way", ["own inputs", *SLOWER_WAYS])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *by_turns(CORE, *DTYPES),
        *(
            pytest.param(x, y, marks=pytest.mark.thorough)
            for x, y in zip(MECHANISMS, cycle(DTYPES))
        ),
    ],
)
def test_no_case_passes_what_nobody_computed(name: str, dtype: str, way: str) -> None:
    """A step passes only if that is right, for the case or for what the candidate wrote before."""
    case = made_here(name)
    how = {"dtype": dtype, "stepwise": way == "stepwise", "chained": way == "chained"}
    assert check(case, {}, **how).verdict == "not judged"
    for answers in trivial_answers(case).values():
        actual = written(case, {**case.expected, **answers}, dtype)
        report = check(case, {x: actual[x] for x in answers}, tuple(answers), **how)
        assert report.verdict != "pass"
        passed = {x.step: x.error for x in report.steps if x.status == "pass"}
        assert {k: x for k, x in passed.items() if x > EPS[dtype]} == {}


def test_a_block_that_adds_nothing_diverges_where_its_tolerance_does_not_see_it() -> None:
    """From the tokens alone errors in bfloat16 have grown to the size of the states."""
    case = oracle_case("light")
    wrong = negative_candidates(case, "bfloat16")["the last block left out"]
    own, step = (check(case, wrong, dtype="bfloat16", chained=x).first for x in (False, True))
    assert own is not None
    assert step is not None
    assert (own.step, own.fault, own.error > own.tolerance) == ("blocks.3.resid_post", "", True)
    assert (step.step, step.status) == ("blocks.3.resid_post", "divergent")
    assert step.fault == "every bit is that of blocks.3.resid_pre: nothing was added"
    assert step.error < step.tolerance


def test_a_block_may_add_less_than_rounding() -> None:
    """A state may stay as it is in bfloat16 if the block adds 1 % of it; in float32 it may not."""
    case = oracle_case("light")
    start, end = "blocks.3.resid_pre", "blocks.3.resid_post"
    state = case.expected[start]
    small = replace(case, expected={start: state, end: 1.01 * state})
    actual = {start: state, end: state}
    assert _unchanged(small, end, actual, "bfloat16") == ""
    assert _unchanged(small, end, actual, "float32") == start
    assert _unchanged(small, end, actual | {end: np.nextafter(state, 0)}, "float32") == ""


@pytest.mark.parametrize(("name", "step"), [("plain", "uniform.base"), ("light", "owl.base")])
def test_an_allocation_off_the_budget_diverges_in_bfloat16(name: str, step: str) -> None:
    """A tolerance of 3 % or of 1 does not see 1 %, but what is pruned in all is known exactly."""
    case = oracle_case(name)
    wrong = negative_candidates(case, "bfloat16")["1 % too large"]
    first = check(case, wrong, (step,), "bfloat16", chained=True).first
    assert first is not None
    assert first.fault.startswith("does not sum to the budget") or first.error > first.tolerance
