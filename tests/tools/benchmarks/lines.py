"""Lines of the files that hold the forward: before the work on speed, and in this checkout.

python tests/tools/benchmarks/lines.py
"""

import ast
import io
import subprocess
import tokenize
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
BEFORE = "bb3bb06"
FILES = ("forward", "attention", "ops", "kernels")
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
SILENT |= {tokenize.ENCODING, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Lines that are neither empty nor part of a comment or docstring."""
    words = set[int]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            words |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(
            node
        ):
            words -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(words)


def counts() -> list[dict[str, Any]]:
    """Of each file, lines of code and all lines, before and now."""
    found = []
    for name in FILES:
        path = f"refimpl/model/{name}.py"
        shown = subprocess.run(
            ["git", "show", f"{BEFORE}:{path}"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        one: dict[str, Any] = {"file": path}
        for when, source in (("before", shown.stdout), ("now", (ROOT / path).read_text())):
            one[when] = {"code": code_lines(source), "all": len(source.splitlines())}
        found.append(one)
    return found


if __name__ == "__main__":
    for one in counts():
        print(one)
