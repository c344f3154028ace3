"""The cases for mistakes that no family's case shows."""

import pytest
from crafted_cases import CRAFTED, REVEALING, oracle_case

from refimpl.oracle.case_folders import cases_below
from refimpl.oracle.check import check


def test_they_are_found_as_a_folder_of_cases() -> None:
    assert {case.name for case in cases_below(REVEALING)} == set(CRAFTED)


@pytest.mark.parametrize("name", ["tied", "sink"])
def test_its_own_values_pass(name: str) -> None:
    """The sample project is checked on all of them."""
    case = oracle_case(name)
    assert check(case, case.expected).verdict == "pass"
