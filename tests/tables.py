"""Tables of cases beside the tests that read them: in `cases.txt` of a folder, a case a line."""

import re
from functools import cache
from math import inf, nan
from pathlib import Path
from typing import Any


@cache
def _tables(folder: str) -> dict[str, list[str]]:
    text = Path(__file__).parent.joinpath(folder, "cases.txt").read_text("utf-8")
    names_and_rows = re.split(r"^# (\w+)\n", text, flags=re.MULTILINE)[1:]
    rows = [[x for x in part.split("\n") if x] for part in names_and_rows[1::2]]
    return dict(zip(names_and_rows[::2], rows, strict=True))


def cases(folder: str, table: str) -> list[Any]:
    """The cases of a table: a line is a Python value, or several, of literals, nan and inf."""
    return [eval(row, {"nan": nan, "inf": inf}) for row in _tables(folder)[table]]
