"""The code on the tutorial's pages: `python tests/tools/tutorial_sources.py`.

A region `<!-- source pico.rms_norm -->` to `<!-- end -->` holds that function of
docs/tutorial/pico.py; one of the library, such as `refimpl.model.ops.layer_norm`, stands there
without its docstring. What stands in it is never typed.
"""

import ast
import inspect
import sys
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import regions

FOLDER = Path(__file__).parents[2] / "docs" / "tutorial"
PAGES = sorted(FOLDER.glob("*.md"))
sys.path += [str(FOLDER)]


def named(name: str) -> Any:
    """A function of the library, or of pico.py, by its full name."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)


def code(name: str) -> str:
    """The source of a function as it stands; of the library without decorators and docstring."""
    source = textwrap.dedent(inspect.getsource(named(name)))
    if name.startswith("pico."):
        return source.rstrip()
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    lines, first = source.splitlines(), function.body[0]
    if ast.get_docstring(function) is not None:
        del lines[first.lineno - 1 : first.end_lineno]
    return "\n".join(lines[function.lineno - 1 :])


def filled(page: str) -> str:
    """A page with the code as it is now."""
    names = {name: name.removeprefix("source ") for name in regions.regions(page)}
    return regions.filled(page, {x: f"\n```text\n{code(y)}\n```\n" for x, y in names.items()})


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text("utf-8")), "utf-8")
