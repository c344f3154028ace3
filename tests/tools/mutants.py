"""Mutants: which small changes of the code no test notices.

    python tests/tools/mutants.py 100 1 2 FOLDER           # mutants, seed, jobs; what is kept

A clone of the last commit in FOLDER has all mutants, each behind a switch. The default and the
thorough tests run once with all switches off, to learn which of them reach a mutant. Then pytest
starts once for many mutants: for each it forks, turns a switch, and runs the quickest default tests
that reach it; survivors meet the slower ones, and the thorough tests that reach them. What only a
thorough test noticed meets all other default tests as well: they may have read what an earlier test
had computed. A mutant of what an import computes gets a pytest of its own. The same command goes on
where it was stopped. Tests of the code's own text do not count.
"""

import ast
import copy
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "model",
    "method",
    "bases",
    "pruners",
    "allocation",
    "scoring",
    "pruning",
    "oracle",
]
NOT_COUNTED = ("tests/docs/", "tests/test_structure.py")
PAIRS: list[tuple[Any, Any]] = [
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.BitAnd, ast.BitOr),
    (ast.And, ast.Or),
]
OTHER = (
    dict(PAIRS) | {b: a for a, b in PAIRS} | {ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult}
)
LEFT = (ast.Raise, ast.JoinedStr, ast.pattern)  # messages and patterns stay
QUICK = 20.0  # seconds of the tests that every mutant meets
STAGES = ("quick", "slower", "thorough", "others")
BOTH = ["-m", "thorough or not thorough"]
SWITCH = """
import os, sys
ACTIVE, SEEN = int(os.environ.get("MUTANT", -1)), os.environ.get("MUTANTS_SEEN")
known = set()
def on(number):
    test = SEEN and os.environ.get("PYTEST_CURRENT_TEST", "")
    if SEEN and (number, test) not in known and (test or "pytest" in sys.modules):
        known.add((number, test))
        with open(SEEN, "a") as file:
            file.write(f"{number} {test}\\n")
    return number == ACTIVE
"""
FAILURES: list[str] = []


def changed(node: ast.AST) -> tuple[str, Any] | None:
    """What a node becomes: a kind of change, and the new node."""
    new: Any = copy.deepcopy(node)
    match new:
        case ast.Compare(ops=[op]):
            new.ops = [OTHER[type(op)]()]
            return "comparison", new
        case ast.BinOp(op=op) | ast.AugAssign(op=op) | ast.BoolOp(op=op) if (
            type(op) in OTHER
        ):
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
        case ast.Call(args=[first, second, *others]) if ast.dump(first) != ast.dump(
            second
        ):
            new.args = [second, first, *others]
            return "swapped arguments", new
    return None


def mutants(file: str) -> list[dict[str, Any]]:
    """All mutants of a file: the node, what takes its place, and whether an import computes it."""
    found: list[dict[str, Any]] = []

    def visit(node: Any, imported: bool) -> None:
        if change := changed(node):
            texts = dict(
                zip(("was", "new"), map(ast.unparse, (node, change[1])), strict=True)
            )
            place = {
                "file": file,
                "line": node.lineno,
                "kind": change[0],
                "imported": imported,
            }
            found.append(place | texts | {"node": node})
        for name, value in ast.iter_fields(node) if not isinstance(node, LEFT) else ():
            inside = name == "body" and isinstance(node, ast.FunctionDef | ast.Lambda)
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                    visit(child, imported and not inside)

    tree = ast.parse((ROOT / file).read_bytes())
    visit(tree, True)
    return [x | {"tree": tree} for x in found]


def drawn(count: int, seed: int) -> list[dict[str, Any]]:
    """Different mutants of all packages, evenly by kind."""
    kinds, draw = defaultdict(list), random.Random(seed)
    for path in sorted(
        x for name in PACKAGES for x in (ROOT / "refimpl" / name).rglob("*.py")
    ):
        for mutant in mutants(str(path.relative_to(ROOT))):
            kinds[mutant["kind"]].append(mutant)
    chosen = (kinds[draw.choice(sorted(kinds))] for _ in range(count))
    return [some.pop(draw.randrange(len(some))) for some in chosen]


class Switches(ast.NodeTransformer):
    """Puts the chosen nodes behind switches."""

    def __init__(self, numbers: dict[Any, int]) -> None:
        self.numbers = numbers

    def visit(self, node: Any) -> Any:
        new = changed(node) if node in self.numbers else None
        old = self.generic_visit(node)
        if new is None:
            return old
        test = ast.parse(f"_mutant({self.numbers[node]})", mode="eval").body
        if isinstance(node, ast.stmt):
            return ast.If(test, [new[1]], [old])
        if isinstance(node, ast.keyword):
            return ast.keyword(node.arg, ast.IfExp(test, new[1].value, old.value))
        return ast.IfExp(test, new[1], old)


def write(tree: Path, chosen: list[dict[str, Any]]) -> None:
    """A clone with the mutants."""
    subprocess.run(["git", "clone", "-q", ROOT, tree], check=True)
    (tree / "refimpl/mutant_switch.py").write_text(SWITCH)
    for file in {x["file"] for x in chosen}:
        own = {x["node"]: i for i, x in enumerate(chosen) if x["file"] == file}
        (module,) = {x["tree"] for x in chosen if x["file"] == file}
        new = Switches(own).visit(copy.copy(module))
        first = next(
            i
            for i, x in enumerate(new.body)
            if isinstance(x, ast.Import | ast.ImportFrom)
        )
        new.body[first:first] = ast.parse(
            "from refimpl.mutant_switch import on as _mutant"
        ).body
        (tree / file).write_text(ast.unparse(ast.fix_missing_locations(new)))


def unit(nodeid: str) -> str:
    """What runs together: a test, or all of a page, whose parts follow each other."""
    return nodeid if nodeid.startswith("tests/") else nodeid.partition("::")[0]


def pytest_runtest_logreport(report: Any) -> None:
    """As a plugin: keep what fails."""
    if report.failed:
        FAILURES.append(unit(report.nodeid))


def pytest_runtestloop(session: Any) -> bool | None:
    """As a plugin: run the listed tests for each mutant in a fork, and write what noticed it.

    Number -1, the last, is no mutant: the tests that noticed one have to pass.
    """
    if "MUTANTS" not in os.environ or session.testsfailed:
        return None
    asked, noticed = json.loads(Path(os.environ["MUTANTS"]).read_text()), list[str]()
    last = [(-1, noticed, 5000)] if asked["jobs"][1:] else []
    for number, tests, limit in asked["jobs"] + last:
        order, items = {name: i for i, name in enumerate(tests)}, session.items
        items = [x for x in items if unit(x.nodeid) in order]
        items.sort(key=lambda item: order[unit(item.nodeid)])
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            child = os.fork()
            if not child:
                _child(session.config, items, number, limit, Path(scratch))
            code = os.waitstatus_to_exitcode(os.wait4(child, 0)[1])
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            failed = (
                Path(scratch, "failed").read_text().split("\n")[:-1]
                if code == 1
                else []
            )
        assert code != 99, "the child did not get to its tests' end"
        noticed += failed
        result = {"number": number, "stage": asked["stage"]}
        result["why"] = "" if code == 0 else " ".join(failed) or f"signal {-code}"
        with open(asked["results"], "a") as file:
            file.write(json.dumps(result) + "\n")
    return True


def _child(
    config: Any, items: list[Any], number: int, limit: int, scratch: Path
) -> None:
    """Run tests with a mutant, until one fails; without one, all. Never returns."""
    code = 99
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        signal.alarm(5400)
        new = {"MUTANT": str(number), "PYTEST_DEBUG_TEMPROOT": str(scratch)}
        os.environ |= new | {"REFIMPL_MADE_CASES": str(scratch)}
        getattr(sys.modules.get("processes"), "ENV", {}).update(os.environ)
        vars(import_module("refimpl.mutant_switch"))["ACTIVE"] = number
        for item, following in zip(items, [*items[1:], None], strict=True):
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if FAILURES and number >= 0:
                break
        (scratch / "failed").write_text("".join(f"{name}\n" for name in FAILURES))
        code = 1 if FAILURES else 0
    finally:
        os._exit(code)


def run(tree: Path, words: list[str], **variables: str) -> str:
    """What pytest prints in a tree."""
    paths = f"{tree}{os.pathsep}{ROOT}/tests/tools"
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "pytest", "-q", "-p", "mutants", *words]
    return subprocess.run(
        command, cwd=tree, env=env, capture_output=True, text=True
    ).stdout


def learn(folder: Path, jobs: int, paths: list[str]) -> dict[str, dict[str, float]]:
    """The seconds of each test that passes, by tier; `folder/seen` has the mutants they reach."""
    kept, seconds = (
        folder / "tests.json",
        {"default": Counter[str](), "thorough": Counter[str]()},
    )
    for tier in seconds if not kept.exists() else ():
        words = ["-n", str(jobs), "-vv", "--durations=0", "--durations-min=0", *paths]
        words += ["-m", "thorough"] if tier == "thorough" else []
        out = run(folder / "tree", words, MUTANTS_SEEN=f"{folder}/seen")
        fail = {
            unit(x) for x in re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", out, re.M)
        }
        print(f"fail without any change, {tier}: {sorted(fail)}\n", flush=True)
        for took, name in re.findall(
            r"^([\d.]+)s (?:call|setup|teardown) +(\S.*)$", out, re.M
        ):
            if not name.startswith(NOT_COUNTED) and unit(name) not in fail:
                seconds[tier][unit(name)] += float(took)
    if not kept.exists():
        kept.write_text(json.dumps(seconds))
    found: dict[str, dict[str, float]] = json.loads(kept.read_text())
    return found


def tests_of(
    stage: str, seconds: dict[str, dict[str, float]], near: set[str]
) -> list[str]:
    """The tests of a stage, the quickest first; `near` reach the mutant."""
    tier = seconds["thorough" if stage == "thorough" else "default"]
    order = sorted(tier, key=lambda name: tier[name])
    own = [x for x in order if x in near]
    totals = accumulate(tier[x] for x in own)
    quick = [x for x, took in zip(own, totals, strict=True) if took < QUICK]
    slower = [x for x in own if x not in quick]
    others = [x for x in order if x not in near]
    return {"quick": quick, "slower": slower, "thorough": own, "others": others}[stage]


def main(count: int, seed: int, jobs: int, folder: Path, *paths: str) -> None:
    """Draw mutants, run them stage by stage, and print what noticed each."""
    chosen, results = drawn(count, seed), folder / "results.jsonl"
    if not folder.exists():
        write(folder / "tree", chosen)
    tiers, near = learn(folder, jobs, [*paths]), defaultdict[int, set[str]](set)
    seconds = tiers["default"] | tiers["thorough"]
    results.touch()
    for line in (folder / "seen").read_text().splitlines():
        number, _, test = line.partition(" ")
        name, _, phase = test.rpartition(" ")
        chosen[int(number)]["imported"] |= not test
        near[int(number)].add(
            unit(name) if phase == "(call)" else name.partition("::")[0]
        )
    for number, mutant in enumerate(chosen):
        package = "/".join(["tests", *mutant["file"].split("/")[1:2]])
        files = (
            {x for x in near[number] if "::" not in x}
            if not mutant["imported"]
            else {package}
        )
        near[number] |= {x for x in seconds for y in files - {""} if x.startswith(y)}

    def judge(stage: str, numbers: list[int]) -> None:
        rows = [(i, tests_of(stage, tiers, near[i])) for i in numbers]
        rows = [(i, tests) for i, tests in rows if tests]
        if not rows:
            return
        every = [x for x in seconds if any(x in tests for _, tests in rows)]
        limits = [100 + 10 * int(sum(seconds[x] for x in tests)) for _, tests in rows]
        asked = {"stage": stage, "results": str(results)}
        asked["jobs"] = [(*row, limit) for row, limit in zip(rows, limits, strict=True)]
        listed = folder / f"{stage}-{numbers[0]}.json"
        listed.write_text(json.dumps(asked))
        words = ["-n", "0", "-p", "no:cacheprovider"]
        words += BOTH + sorted({x.partition("::")[0] for x in every})
        alone = str(rows[0][0] if len(rows) == 1 else -1)
        out = run(folder / "tree", words, MUTANTS=str(listed), MUTANT=alone)
        if all(
            (i, stage) not in done(results) for i in numbers
        ):  # nothing could be imported
            last = {"number": numbers[0], "stage": stage, "why": out[-300:]}
            with results.open("a") as file:
                file.write(json.dumps(last) + "\n")

    left = [*range(count)]
    for stage in STAGES:
        todo = [i for i in left if (i, stage) not in done(results)]
        shared = [i for i in todo if not chosen[i]["imported"]]
        groups = [[i] for i in todo if i not in shared] + [
            shared[j::jobs] for j in range(jobs)
        ]
        with ThreadPoolExecutor(jobs) as pool:
            [
                *pool.map(
                    lambda group, stage=stage: judge(stage, group), filter(None, groups)
                )
            ]
        noticed = [i for i in left if done(results).get((i, stage))]
        left = noticed if stage == "thorough" else [i for i in left if i not in noticed]
        print(f"{stage}: noticed {len(noticed)}; go on: {left}", flush=True)
        if wrong := done(results).get((-1, stage)):
            print(f"these fail without any change, too: {wrong}", flush=True)
    print("\n| place | kind | was | is | noticed by |\n|---|---|---|---|---|")
    why = {i: x for (i, _), x in done(results).items() if i >= 0 and x}
    print(f"\nonly the thorough tests noticed {len(left)} of {count}: {left}")
    for i, x in enumerate(chosen):
        cells = [f"{x['file']}:{x['line']}", x["kind"], x["was"], x["new"]]
        cells = [" ".join(y.split()).replace("|", "\\|")[:90] for y in cells]
        print("|", " | ".join([*cells, why.get(i, "**nothing**")[:120]]), "|")


def done(results: Path) -> dict[tuple[int, str], str]:
    """What noticed each mutant in each stage that it has had."""
    lines = map(json.loads, results.read_text().splitlines())
    return {(x["number"], x["stage"]): x["why"] for x in lines}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]).absolute(), *sys.argv[5:])
