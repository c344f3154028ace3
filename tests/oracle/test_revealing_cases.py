"""The cases for mistakes that no family's case shows."""

import json
from pathlib import Path

import pytest
from crafted_cases import CRAFTED, REVEALING, make_revealing, oracle_case

from refimpl.oracle.case_folders import cases_below
from refimpl.oracle.check import check


def test_they_are_found_as_a_folder_of_cases() -> None:
    assert {case.name for case in cases_below(REVEALING)} == set(CRAFTED)


@pytest.mark.parametrize("name", ["tied", "exact", "long"])
def test_the_script_makes_the_committed_case(name: str, tmp_path: Path) -> None:
    (tmp_path / "revealing").mkdir()
    make_revealing(name, tmp_path / "revealing")
    old, new = (
        json.loads((x / name / "case.json").read_text())
        for x in (REVEALING, tmp_path / "revealing")
    )
    assert {key for key in old if old[key] != new[key]} <= {"versions"}


@pytest.mark.parametrize("name", ["tied", "sink"])
def test_its_own_values_pass(name: str) -> None:
    """The sample project is checked on all of them."""
    case = oracle_case(name)
    assert check(case, case.expected).verdict == "pass"
