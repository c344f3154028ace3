"""No case accepts a candidate that is wrong on purpose, in any dtype."""

import pytest
from candidates import CASE_NAMES
from crafted_cases import CRAFTED, oracle_case

from refimpl.oracle.case_folders import CORE
from refimpl.oracle.check import check
from refimpl.testing.negative_candidates import CHANGES, negative_candidates

WAYS = [*CHANGES, "the last block left out"]
# From the tokens, rounding in 16 bits may have grown to the size of what the last block adds.
UNRESOLVED = {"float16": WAYS[-1:], "bfloat16": WAYS[-1:]}


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "name",
    [*CORE, *(pytest.param(x, marks=pytest.mark.torch) for x in [*CASE_NAMES, *CRAFTED]
              if x not in CORE)],
)  # fmt: skip
def test_no_case_accepts_a_wrong_candidate(name: str, dtype: str) -> None:
    """Each diverges from the tokens or, where the dtype does not resolve that, step by step.

    The cases that do not travel in the wheel run with the tests of torch.
    """
    case = oracle_case(name)
    wrong = negative_candidates(case, dtype)
    same = {"permuted blocks"} if case.model.config.num_blocks == 1 else set()
    assert list(wrong) == [way for way in WAYS if way not in same]
    verdicts = {way: check(case, arrays, dtype=dtype).verdict for way, arrays in wrong.items()}
    assert "pass" not in verdicts.values(), verdicts
    unresolved = {way for way, x in verdicts.items() if x != "divergent"}
    assert unresolved <= {*UNRESOLVED.get(dtype, ())}, verdicts
    for way in unresolved:
        assert check(case, wrong[way], dtype=dtype, stepwise=True).verdict == "divergent", way


@pytest.mark.parametrize(("name", "step"), [("plain", "uniform.base"), ("light", "owl.base")])
def test_an_allocation_off_the_budget_diverges_in_bfloat16(name: str, step: str) -> None:
    """A tolerance of 3 % or of 1 does not see 1 %, but what is pruned in all is known exactly."""
    case = oracle_case(name)
    wrong = negative_candidates(case, "bfloat16")["1 % too large"]
    first = check(case, wrong, dtype="bfloat16").first
    assert first is not None
    assert first.step == step
    assert first.fault.startswith("does not sum to the budget")
    assert first.error < first.tolerance
