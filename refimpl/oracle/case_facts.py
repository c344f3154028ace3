"""`case.json`, read through its schema; NumPy is not needed."""

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.loading.files.json_schema import require

FACTS = "case.json"
NEXT = "make the case again with refimpl case make"
EXPECTED = f"a case: a folder with {FACTS} and the files that refimpl case make wrote"


def case_facts(folder: Path) -> dict[str, Any]:
    """The facts of the case in a folder, which are as the schema says."""
    file = folder / FACTS
    with reading(file, EXPECTED):
        facts = json_object(read_file(file), str(file), EXPECTED)
    try:
        require(facts, _schema())
    except ValueError as error:
        raise RefimplError(f"{folder} is not a case ({error})", EXPECTED, NEXT) from error
    return facts


@cache
def _schema() -> dict[str, Any]:
    content = files("refimpl.oracle").joinpath("case.schema.json").read_text("utf-8")
    schema: dict[str, Any] = json.loads(content)
    return schema
