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
from queue import SimpleQueue
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
        case ast.Constant(value=bool() as value):
            return "boolean", ast.Constant(not value)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return "boolean", operand
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
    source, found, starts = path.read_bytes(), list[dict[str, Any]](), [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def visit(node: Any) -> None:
        if change := changed(node):
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            text = ast.unparse(ast.fix_missing_locations(change[1]))
            text = f"({text})" if isinstance(change[1], ast.expr) else text
            place = {"file": str(path.relative_to(ROOT)), "line": node.lineno, "kind": change[0]}
            found.append(place | {"was": source[begin:end], "new": text, "begin": begin})
        for field, child in ast.iter_fields(node):  # no messages and no types
            for one in child if isinstance(child, list) else [child]:
                types = field in ("annotation", "returns") or isinstance(node, ast.Raise)
                if isinstance(one, ast.AST) and not types and not isinstance(node, ast.JoinedStr):
                    visit(one)

    visit(ast.parse(source))
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
    command = ["timeout", "3600", sys.executable, "-m", "pytest", "-q", "-x", "-p", "mutants"]
    done = subprocess.run([*command, *words], cwd=tree, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout


def noticed(tree: Path, mutant: dict[str, Any], tests: Counter[str], near: set[str]) -> str:
    """The first test that fails with a mutant, or nothing; those `near` execute its line."""
    path, listed, begin = tree / mutant["file"], tree.with_suffix(".json"), mutant["begin"]
    order, old = sorted(tests, key=lambda x: (x not in near, tests[x])), path.read_bytes()
    path.write_bytes(old[:begin] + mutant["new"].encode() + old[begin + len(mutant["was"]) :])
    os.utime(path, (mutant["time"],) * 2)  # or a compiled module of the same second may be taken
    middle = min(FIRST, len(near & tests.keys()))
    for some in filter(None, (order[:middle], order[middle:])):
        listed.write_text(json.dumps(some))
        words = ["-n", "0", "-p", "no:cacheprovider", *{name.partition("::")[0] for name in some}]
        code, out = run(tree, words, MUTANTS=str(listed))
        if code not in (0, 5):
            break
    path.write_bytes(old)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", out, re.MULTILINE)
    return "" if code in (0, 5) else failed[1] if failed else f"exit code {code}"


def main(count: int, seed: int, jobs: int, *paths: str) -> None:
    """Draw mutants, evenly by kind; run them, and print a table."""
    kinds, draw, tests = defaultdict(list), random.Random(seed), Counter[str]()
    for path in sorted(x for name in PACKAGES for x in (ROOT / "refimpl" / name).rglob("*.py")):
        for mutant in mutants(path):
            kinds[mutant["kind"]].append(mutant)
    drawn = [draw.choice(kinds[draw.choice(sorted(kinds))]) for _ in range(count)]
    with tempfile.TemporaryDirectory() as scratch:
        words = ["--cov=refimpl", "--cov-context=test", "--cov-report=", "-n", str(jobs), "-vv"]
        words += ["--durations=0", "--durations-min=0", *paths]
        code, out = run(ROOT, words, COVERAGE_FILE=f"{scratch}/lines")
        assert code == 0, out[-3000:]
        for took, name in re.findall(r"^([\d.]+)s (?:call|setup|teardown) +(\S.*)$", out, re.M):
            if not name.startswith(NOT_COUNTED):
                tests[unit(name)] += float(took)
        lines, trees = CoverageData(f"{scratch}/lines"), SimpleQueue[Path]()
        lines.read()
        for i in range(jobs):
            trees.put(Path(scratch, f"tree{i}"))
            subprocess.run(["git", "clone", "-q", ROOT, f"{scratch}/tree{i}"], check=True)
        print("| place | kind | was | is | noticed by |\n|---|---|---|---|---|")

        def judged(number: int) -> str:
            mutant, tree = drawn[number] | {"time": 10**9 + number}, trees.get()
            near = lines.contexts_by_lineno(str(ROOT / mutant["file"])).get(mutant["line"], [])
            why = noticed(tree, mutant, tests, {unit(x.rpartition("|")[0]) for x in near})
            trees.put(tree)
            place = f"{mutant['file'].removeprefix('refimpl/')}:{mutant['line']}"
            was = " ".join(mutant["was"].decode().split())
            cells = [place, mutant["kind"], was, mutant["new"], why or "**nothing**"]
            print(
                f"| {' | '.join(x.replace('|', chr(92) + '|')[:90] for x in cells)} |", flush=True
            )
            return why

        with ThreadPoolExecutor(jobs) as pool:
            left = [*pool.map(judged, range(count))].count("")
    print(f"\n{count - left} of {count} noticed")


if __name__ == "__main__":
    from coverage import CoverageData

    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
