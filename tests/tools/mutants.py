"""Mutants: which small changes of the code no test notices.

    python tests/tools/mutants.py 100 1 2                  # mutants, seed, jobs

It needs pytest-cov. The default tests, or those of further words, run once to learn which of them
execute a line. Each mutant then runs in a clone: first the quickest tests that execute its line,
then, if it survives, all others. Tests of the code's own text do not count.
"""

import ast
import copy
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ["model", "method", "bases", "pruners", "allocation", "scoring", "pruning", "oracle"]
NOT_COUNTED = ("tests/docs/", "tests/test_structure.py")
PAIRS: list[tuple[Any, Any]] = [
    (ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn), (ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.BitAnd, ast.BitOr),
    (ast.And, ast.Or),
]  # fmt: skip
OTHER = dict(PAIRS) | {b: a for a, b in PAIRS} | {ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult}
TEXTS = (ast.Raise, ast.JoinedStr)  # messages stay
FAILED = r"^(?:FAILED|ERROR) (\S+)"
FIRST = 40  # tests


def changed(node: ast.AST) -> tuple[str, ast.AST] | None:
    """What a node becomes: a kind of change, and the new node."""
    new: Any = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]):
            new.ops = [OTHER[type(op)]()]
            return "comparison", new
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if type(op) in OTHER:
            new.op = OTHER[type(op)]()
            return "boolean" if isinstance(new, ast.BoolOp) else "arithmetic", new
        case ast.Constant(value=bool()) | ast.UnaryOp(op=ast.Not()):
            is_not = isinstance(new, ast.UnaryOp)
            return "boolean", new.operand if is_not else ast.Constant(not new.value)
        case ast.Constant(value=int() | float() as value):
            return "constant", ast.Constant(value + 1 if value in (0, 1) else value * 2)
        case ast.keyword(arg="axis", value=ast.Constant(value=int() as axis)):
            return "axis", ast.keyword("axis", ast.Constant(0 if axis else -1))
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
            return "deleted statement", ast.Pass()
        case ast.Call(args=[first, second, *others]) if ast.dump(first) != ast.dump(second):
            new.args = [second, first, *others]
            return "swapped arguments", new
    return None


def mutants(path: Path) -> list[dict[str, Any]]:
    """All mutants of a file: what stands where, and what takes its place."""
    lines, found = path.read_bytes().splitlines(keepends=True), list[dict[str, Any]]()

    def visit(node: Any) -> None:
        if change := changed(node):
            begin = len(b"".join(lines[: node.lineno - 1])) + node.col_offset
            end = len(b"".join(lines[: node.end_lineno - 1])) + node.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(change[1]))
            text = f"({text})" if isinstance(change[1], ast.expr) else text
            place = {"file": str(path.relative_to(ROOT)), "line": node.lineno, "kind": change[0]}
            was = b"".join(lines)[begin:end]
            found.append(place | {"was": was, "new": text, "begin": begin})
        for child in [] if isinstance(node, TEXTS) else ast.iter_child_nodes(node):
            if child not in (getattr(node, "annotation", None), getattr(node, "returns", None)):
                visit(child)

    visit(ast.parse(path.read_bytes()))
    return found


def unit(nodeid: str) -> str:
    """What runs together: a test, or all of a page or docstrings, whose parts follow each other."""
    return nodeid if nodeid.startswith("tests/") else nodeid.partition("::")[0]


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """As a plugin: run those tests alone that are listed, in this order."""
    if file := os.environ.get("MUTANTS"):
        order = {name: i for i, name in enumerate(json.loads(Path(file).read_text()))}
        listed = (item for item in items if unit(item.nodeid) in order)
        items[:] = sorted(listed, key=lambda item: order[unit(item.nodeid)])


def run(tree: Path, words: list[str], **variables: str) -> tuple[int, str]:
    """The exit code of pytest in a tree, and what it printed; 124 if it takes too long."""
    paths = f"{tree}{os.pathsep}{tree}/tests/tools"
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | variables
    command = ["timeout", "1500", sys.executable, "-m", "pytest", "-q", "-p", "mutants"]
    done = subprocess.run([*command, *words], cwd=tree, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout


def noticed(tree: Path, mutant: dict[str, Any], tests: Counter[str], near: set[str]) -> str:
    """The first test that fails with a mutant, or nothing; those `near` execute its line."""
    path, begin, was = tree / mutant["file"], mutant["begin"], mutant["was"]
    order, old = sorted(tests, key=lambda x: (x not in near, tests[x])), path.read_bytes()
    path.write_bytes(old[:begin] + mutant["new"].encode() + old[begin + len(was) :])
    os.utime(path, (begin + len(was),) * 2)  # or a module compiled in this second may be taken
    middle = min(FIRST, len(near & tests.keys()))
    for some in filter(None, (order[:middle], order[middle:])):
        listed = tree.with_suffix(".json")
        listed.write_text(json.dumps(some))
        alone = ["-x", "-n", "0", "-p", "no:cacheprovider"]
        files = {name.partition("::")[0] for name in some}
        code, out = run(tree, [*alone, *files], MUTANTS=str(listed))
        if code not in (0, 5):
            break
    path.write_bytes(old)
    failed = re.search(FAILED, out, re.MULTILINE)
    return "" if code in (0, 5) else failed[1] if failed else f"exit code {code}"


def main(count: int, seed: int, jobs: int, *paths: str) -> None:
    """Draw mutants, evenly by kind; run them, and print a table."""
    kinds, draw, tests = defaultdict(list), random.Random(seed), Counter[str]()
    for path in sorted(x for name in PACKAGES for x in (ROOT / "refimpl" / name).rglob("*.py")):
        for mutant in mutants(path):
            kinds[mutant["kind"]].append(mutant)
    drawn = [draw.choice(kinds[draw.choice(sorted(kinds))]) for _ in range(count)]
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        words = ["--cov=refimpl", "--cov-context=test", "--cov-report=", "-n", str(jobs), "-vv"]
        words += ["--durations=0", "--durations-min=0", *paths]
        out = run(ROOT, words, COVERAGE_FILE=f"{scratch}/lines")[1]
        fail = {unit(x) for x in re.findall(FAILED, out, re.MULTILINE)}  # without any change
        for took, name in re.findall(r"^([\d.]+)s (?:call|setup|teardown) +(\S.*)$", out, re.M):
            if not name.startswith(NOT_COUNTED) and unit(name) not in fail:
                tests[unit(name)] += float(took)
        lines = CoverageData(f"{scratch}/lines")
        lines.read()
        print(f"{len(tests)} tests; these fail without any change: {sorted(fail)}\n")
        print("| place | kind | was | is | noticed by |\n|---|---|---|---|---|", flush=True)

        def judged(job: int) -> int:
            tree, left = Path(scratch, f"tree{job}"), 0
            subprocess.run(["git", "clone", "-q", ROOT, tree], check=True)
            for mutant in drawn[job::jobs]:
                file, line = mutant["file"], mutant["line"]
                near = lines.contexts_by_lineno(str(ROOT / file)).get(line, [])
                why = noticed(tree, mutant, tests, {unit(x.rpartition("|")[0]) for x in near})
                was, left = " ".join(mutant["was"].decode().split()), left + (not why)
                cells = [f"{file}:{line}", mutant["kind"], was, mutant["new"], why or "**nothing**"]
                print("|", " | ".join(x.replace("|", "\\|")[:90] for x in cells), "|", flush=True)
            return left

        left = sum(pool.map(judged, range(jobs)))
    print(f"\n{count - left} of {count} noticed")


if __name__ == "__main__":
    from coverage import CoverageData

    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
