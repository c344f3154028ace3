"""No case accepts a candidate that is wrong on purpose, in any dtype."""

from functools import cache
from itertools import cycle

import numpy as np
import pytest
from candidates import written
from crafted_cases import CRAFTED, oracle_case
from gates import model_of
from negative_candidates import CHANGES, negative_candidates, trivial_answers

from refimpl.loading.samples import Tokens
from refimpl.oracle.case import Case, computed_case
from refimpl.oracle.case_folders import CORE
from refimpl.oracle.check import check
from refimpl.oracle.measures import EPS
from refimpl.oracle.recipe import Recipe

WAYS = [*CHANGES, "the last block left out"]
DTYPES = ("bfloat16", "float32", "float16", "float64")
MECHANISMS = ("mixtral", "qwen3_5", "granitemoehybrid", "deepseek_v2", "gemma4_small")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("opt", "float32"),
        ("phi3", "float16"),
        *(
            pytest.param(x, y, marks=pytest.mark.thorough)
            for x, y in zip(("llama", *CRAFTED), cycle(DTYPES), strict=False)
        ),
    ],
)
def test_no_case_accepts_a_wrong_candidate(name: str, dtype: str) -> None:
    """Each diverges; core cases are tried in one dtype, crafted ones in a tier."""
    case = oracle_case(name)
    wrong = negative_candidates(case, dtype)
    same = {"permuted blocks"} if case.model.config.num_blocks == 1 else set()
    assert list(wrong) == [way for way in WAYS if way not in same]
    verdicts = {
        way: check(case, arrays, dtype=dtype).verdict for way, arrays in wrong.items()
    }
    if dtype == "bfloat16" and verdicts["1 % too large"] == "not judged":
        del verdicts[
            "1 % too large"
        ]  # two units of bfloat16: within a right candidate's errors
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


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *zip(CORE, DTYPES, strict=False),
        *(
            pytest.param(x, y, marks=pytest.mark.thorough)
            for x, y in zip(MECHANISMS, cycle(DTYPES))
        ),
    ],
)
def test_no_case_passes_what_nobody_computed(name: str, dtype: str) -> None:
    """A step passes only if that is right, for the case or for what the candidate wrote before."""
    case = made_here(name)
    assert check(case, {}, dtype=dtype).verdict == "not judged"
    for answers in trivial_answers(case).values():
        actual = written(case, {**case.expected, **answers}, dtype)
        report = check(
            case, {x: actual[x] for x in answers}, tuple(answers), dtype=dtype
        )
        assert report.verdict != "pass"
        passed = {x.step: x.error for x in report.steps if x.status == "pass"}
        assert {k: x for k, x in passed.items() if x > EPS[dtype]} == {}
