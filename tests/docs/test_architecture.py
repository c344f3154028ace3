"""The page on the architecture: its order of packages is the tested one, its journeys exist."""

import ast
import re

import pytest
from conftest import HERE
from test_structure import STAGES

ROOT = HERE.parent
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text("utf-8")
STOPS = re.findall(r"^\| (\d+) \| `(refimpl/[\w/]+\.py)`, `(\w+)` \|", PAGE, re.MULTILINE)


def test_the_order_of_packages_is_the_tested_one() -> None:
    lines = re.findall(r"^\d+\. (`.*`)$", PAGE, re.MULTILINE)
    listed = [set(re.findall(r"`(\w+)`", line)) for line in lines]
    assert listed == [set(stage) for stage in STAGES if "__init__" not in stage]


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: f"{stop[1]}-{stop[2]}")
def test_every_stop_exists(stop: tuple[str, str, str]) -> None:
    _, path, name = stop
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    assert name in {getattr(node, "name", None) for node in tree.body}


def test_journeys_count_their_stops() -> None:
    promised = [int(n) for n in re.findall(r"\((\d+) stops\)", PAGE)]
    numbers = [int(n) for n, _, _ in STOPS]
    starts = [i for i, n in enumerate(numbers) if n == 1]
    assert promised == [b - a for a, b in zip(starts, [*starts[1:], len(numbers)], strict=True)]
