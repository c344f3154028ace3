"""Hostile input: a fixed sample of the fuzzing, a long run by `pytest -m fuzz tests/fuzz`.

Every failure that the fuzzing found is in regressions.py or in the tests of what was at fault.
"""

import re
import subprocess
import sys

import pytest
from conftest import HERE
from processes import ENV

FUZZ = HERE / "tools" / "fuzz" / "fuzz.py"


def fuzzed(*words: object) -> str:
    """What the fuzzing prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, FUZZ, *map(str, words)],
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.thorough
def test_a_fixed_sample() -> None:
    assert re.search(
        r"^120 cases in .* 0 failures",
        fuzzed("--cases", 120, "--seed", 0),
        re.MULTILINE,
    )


@pytest.mark.fuzz
def test_good_files_are_not_refused() -> None:
    assert " 0 failures" in fuzzed("--good")


@pytest.mark.thorough
def test_what_was_found_before() -> None:
    assert " 0 failures" in fuzzed("--regressions")


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_long_run(seed: int) -> None:
    print(fuzzed("--cases", 5000, "--seed", seed))
