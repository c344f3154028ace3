"""What docs/reference/stability.md promises: a change of it fails unless the changelog names it.

At a release, `PYTHONPATH=.:tests python tests/test_promises.py` writes the list anew.
"""

import ast
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pages
import pytest

import refimpl
from refimpl import plot
from refimpl.cli.main import INTERNAL
from refimpl.cli.terminal import NO_READER
from refimpl.oracle.check import EXIT

ROOT = Path(__file__).parents[1]
FILE = ROOT / "tests" / "promises.txt"
INTERRUPTED, REFUSED = 130, 2


def promises() -> Iterator[str]:
    """Everything that is stable, a line each; the changelog names it by its last word."""
    for name, command in pages.commands().items():
        yield f"command {name}"
        for parameter in command.params:
            words = [x for x in parameter.opts if x.startswith("--")] or [
                parameter.name.upper()
            ]
            yield from (f"command {name} {word}" for word in words)
    for module in (refimpl, plot):
        for name in module.__all__:
            yield f"library {module.__name__} {name}"
            found = getattr(module, name)
            if inspect.isfunction(found) or hasattr(found, "__dataclass_fields__"):
                parameters = inspect.signature(found).parameters.values()
                named = [x.name for x in parameters if x.kind is not x.VAR_KEYWORD]
                yield from (
                    f"library {module.__name__}.{name} {parameter}"
                    for parameter in named
                )
    for code in sorted({*EXIT.values(), REFUSED, INTERNAL, NO_READER, INTERRUPTED}):
        yield f"exit code {code}"
    for path in sorted((ROOT / "docs" / "reference").glob("*.schema.json")):
        kind = path.name.partition(".")[0]
        for title, schema in json.loads(path.read_text("utf-8"))["$defs"].items():
            for field, facts in schema.get("properties", {}).items():
                yield f"document {kind} {title} {field}"
                if field in ("format", "schema") and "enum" in facts:
                    yield f"document {kind} {field} {facts['enum'][-1]}"
    module = import_module("refimpl.testing.plugin")
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="addini" | "addoption"), args=[name, *_]
            ):
                yield f"pytest {eval(ast.unparse(name), vars(module))}"
            case ast.FunctionDef(name=name, decorator_list=[ast.Call(func=mark)]):
                if ast.unparse(mark) == "pytest.fixture":
                    yield f"pytest fixture {name}"
    yield f"numbers SPEC {refimpl.SPEC}"


def unnamed(changes: set[str], text: str) -> list[str]:
    """Changes whose name is nowhere in a text: the last word, or `format 6` with its number."""

    def named(change: str) -> bool:
        *_, before, last = change.split()
        name = f"{before} {last}" if last.isdecimal() else last
        return re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) is not None

    return sorted(change for change in changes if not named(change))


def unreleased() -> str:
    return (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]


def test_what_is_stable_changes_only_with_an_entry_in_the_changelog() -> None:
    frozen = FILE.read_text("utf-8").splitlines()
    assert unreleased().startswith("Unreleased")
    assert unnamed({*frozen} ^ {*promises()}, unreleased()) == []


def test_a_change_without_an_entry_is_found() -> None:
    today = {*promises()}
    assert len(today) > 400
    assert {"command score --eta", "library refimpl.score plan", "exit code 3"} <= today
    assert {
        "document scores Absorption coefficient",
        "pytest fixture refimpl_case",
    } <= today
    for change, text, is_named in (
        ("command score --eta", "`--beta` and `--eta-2` are gone", False),
        ("command score --eta", "`--eta` is gone", True),
        ("document scores format 6", "There are 6 of them, and format 5", False),
        ("document scores format 6", "`scores.json` has format 6", True),
    ):
        assert (unnamed({change}, text) == []) == is_named


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["tool"]["hatch"]["version"]["path"] == "refimpl/version.py"
    assert "version" in project["project"]["dynamic"]
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert re.findall(r"(?m)^version: (.*)", citation) == [refimpl.__version__]
    assert re.findall(r"(?m)^date-released: \d{4}-\d\d-\d\d$", citation)
    others = [*ROOT.glob("*.toml"), ROOT / "docs" / "conf.py"]
    others += [x for x in (ROOT / "refimpl").rglob("*.py") if x.name != "version.py"]
    assert [
        x for x in others if f'"{refimpl.__version__}"' in x.read_text("utf-8")
    ] == []


@pytest.mark.parametrize("word", ["Unreleased", "promises.txt"])
def test_the_page_says_how_promises_are_kept(word: str) -> None:
    assert word in (ROOT / "docs" / "reference" / "stability.md").read_text("utf-8")


if __name__ == "__main__":
    FILE.write_text("".join(f"{line}\n" for line in promises()), "utf-8")
