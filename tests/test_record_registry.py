"""Records of other packages: entry points."""

from importlib.metadata import EntryPoint
from typing import Any

import pytest
from refusals import refusal_of

from refimpl.bases.base import Base
from refimpl.records import record_named


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("absent_module:BASE", "which fails with ModuleNotFoundError"),
        ("refimpl.records:absent", "which fails with AttributeError"),
        ("refimpl.records:record_named", "no Base"),
    ],
)
def test_an_entry_point_that_fails_is_named(
    value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def entries(group: str, name: str) -> list[Any]:
        return [EntryPoint(name, value, group)]

    monkeypatch.setattr("importlib.metadata.entry_points", entries)
    refusal_of(record_named, f"own {value}", "refimpl.bases", Base, says=says)
