"""How good the oracle is: mistakes that it names, and correct candidates that it accepts.

    oracle_quality.py --log FOLDER --jobs 2             # hours
    oracle_quality.py --log FOLDER --only shapes --first 10000 --shapes 1000
    oracle_quality.py --log FOLDER --shapes 0 --page docs/results/oracle.md

Mistakes: every entry of tests/tools/mistakes.py, on its own case and on the core cases. All of them
have to be caught in float64 and float32, at their step; in 16 bits where the largest error that one
makes there in float64 is at least twice what is allowed.

Shapes: right candidates on tiny random models of all families (`random_configs.drawn`). None may be
divergent. A shape's number is its seed.

What `mistakes.jsonl` and `shapes.jsonl` in the folder hold, a line each, is not run again.
"""

import argparse
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

sys.path.extend(map(str, Path(__file__).parents[1:3]))

from figure import markdown
from mistakes import ALL, AREAS, MISTAKES
from oracle_mistakes import BOTH, OWN, RIGHT, WAYS, Line, by_other_means, logged, try_mistakes
from oracle_shapes import shape_rows, try_shapes
from regions import fill

from refimpl.oracle.case_folders import CORE

ByRun = dict[tuple[str, str, str, str], Line]
"""What became of a mistake, by its name, the case, the way and the dtype."""


def shown(found: Line | None) -> str:
    """A cell: a mistake as a multiple of the tolerance; in parentheses if it is not caught."""
    if found is None:
        return ""
    ratio, differ = found["ratio"], int(found["differ"])
    number = f"{ratio:.2g}" if ratio < 100 else f"{ratio:.0e}"
    number = number.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    if differ or ratio == float("inf"):
        number = f"{differ} differ" if differ else "any"
    return {
        "caught": number,
        "elsewhere": f"({number}), at `{found['first']}`",
        "undetectable": f"({number})",
        "not judged": f"({number}: not judged)",
        "missed": f"MISSED: {number}",
    }[found["result"]]


def core_catches(runs: ByRun, mistake: str, way: str, dtype: str) -> list[str]:
    """The core cases that catch a mistake, at any step."""
    found = {case: runs.get((mistake, case, way, dtype), {}).get("result") for case in CORE}
    return [case for case, result in found.items() if result in ("caught", "elsewhere")]


def totals(runs: ByRun) -> str:
    """How many mistakes were caught, by cases, way and dtype."""
    rows = []
    for way, dtype in OWN:
        of = {x: runs.get((x, MISTAKES[x].case, way, dtype)) for x in MISTAKES}
        results = Counter(x["result"] for x in of.values() if x)
        caught = results.pop("caught", 0) + results["elsewhere"]
        elsewhere = results.pop("elsewhere", 0)
        rest = ", ".join(f"{n} {result}" for result, n in results.most_common() if n)
        if dtype in BOTH:
            core = sum(bool(core_catches(runs, x, way, dtype)) for x in of)
            by_any = sum(
                bool(core_catches(runs, name, way, dtype))
                or (x or {}).get("result") in ("caught", "elsewhere")
                for name, x in of.items()
            )
        rows.append(
            (
                f"{dtype}, {way}", sum(x is not None for x in of.values()), caught, elsewhere,
                rest or "none", by_any if dtype in BOTH else "", core if dtype in BOTH else "",
            )
        )  # fmt: skip
    head = (
        "dtype, way", "mistakes", "caught by their own case", "of these at another step",
        "not caught by it", "caught by it or a core case", "caught by a core case",
    )  # fmt: skip
    return markdown(head, rows)


def mistakes_page(runs: ByRun) -> str:
    """How many mistakes were caught, and a table for each area."""
    parts = [totals(runs)]
    columns = [f"{dtype}" if way == WAYS[0] else f"{dtype}, {way}" for way, dtype in OWN]
    for area, mistakes in AREAS.items():
        rows = []
        for name, mistake in mistakes.items():
            cells = [shown(runs.get((name, mistake.case, *run))) for run in OWN]
            core = ", ".join(core_catches(runs, name, WAYS[0], "float32"))
            rows.append((name, mistake.case, f"`{mistake.step}`", *cells, core))
        parts.append(markdown((area, "case", "step", *columns, "core, float32"), rows))
    return "\n\n".join(parts)


def failures(runs: ByRun) -> list[str]:
    """Mistakes that pass though they should not, and right candidates that are refused."""
    wrong = []
    for (mistake, case, way, dtype), x in runs.items():
        if mistake == RIGHT and x["first"]:
            wrong.append(f"right, refused: {case}, {dtype}, {way}, at {x['first']}")
        elif mistake != RIGHT and case == MISTAKES[mistake].case:
            other = x["result"] != "caught" and dtype in ALL[:2]
            if other or x["result"] == "missed":
                wrong.append(f"{mistake}: {case}, {dtype}, {way}: {x['result']} {x['first']}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, required=True, help="a folder for the results")
    parser.add_argument("--only", choices=("mistakes", "shapes"), help="one of the two")
    parser.add_argument("--shapes", type=int, default=20, help="how many right candidates")
    parser.add_argument("--first", type=int, default=0, help="number of the first shape")
    parser.add_argument("--dtypes", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--page", type=Path, help="fill the marked regions of this page")
    given = parser.parse_args()
    packages = ("refimpl", "numpy", "torch", "transformers")
    print(", ".join(f"{name} {version(name)}" for name in packages), flush=True)
    given.log.mkdir(exist_ok=True)
    failed, regions = [], {}
    if given.only != "shapes":
        log = given.log / "mistakes.jsonl"
        try_mistakes(tuple(given.dtypes), given.jobs, log)
        runs = {(x["mistake"], x["case"], x["way"], x["dtype"]): x for x in logged(log)}
        regions["mistakes"] = mistakes_page(runs)
        head = "change", "dtype", "diverges", "not resolved", "passes"
        regions["owl"] = markdown(head, [*by_other_means()])
        failed += failures(runs)
    if given.only != "mistakes":
        log = given.log / "shapes.jsonl"
        numbers = range(given.first, given.first + given.shapes)
        try_shapes(numbers, tuple(given.dtypes), given.jobs, log)
        rows = shape_rows(log)
        if rows:
            regions["shapes"] = markdown(list(rows[0]), [list(row.values()) for row in rows])
        failed += [str(row) for row in rows if any(row[x] != "0" for x in ("divergent", "crash"))]
    for region, text in regions.items():
        print(text, flush=True)
        if given.page:
            fill(given.page, {region: f"\n\n{text}\n\n"})
    print(*failed, sep="\n")
    sys.exit(int(bool(failed)))


if __name__ == "__main__":
    main()
