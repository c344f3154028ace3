"""How good the oracle is: mistakes that it names, and correct candidates that it accepts.

    python tests/benchmarks/oracle_quality.py                        # mistakes, and 20 shapes
    python tests/benchmarks/oracle_quality.py --shapes 1000 --jobs 2 --log shapes.jsonl
    python tests/benchmarks/oracle_quality.py --page docs/results/oracle.md --log shapes.jsonl

Mistakes: every entry of `tests/mistakes.py`, in each dtype where it is one. All of them have to be
caught in float64 and float32, at the step where they were made. In 16 bits one counts where its
effect is at least twice what is allowed: the largest error that it makes at that step (of any
block), in float64, against the truth.

Shapes: the sample project, right, on tiny random models of the ten families. None may be divergent.
Shapes are numbered, and their number is their seed; `--first` goes on at one. Results are added to
the log, a line each.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from candidates import Arrays
from crafted_cases import oracle_case
from figure import markdown
from mistakes import ALL, AREAS, MISTAKES, Mistake, arrays_of, project
from oracle_shapes import shape_rows, try_shapes

import refimpl.oracle.near_ties as tying
import refimpl.oracle.step_tolerances as limiting
from refimpl.oracle.case import Case
from refimpl.oracle.check import check
from refimpl.oracle.judging.measures import error_of, measure_of
from refimpl.oracle.reference_errors import reference_run

COUNTS = 2.0  # times what is allowed, from which on a mistake has to be caught in 16 bits


@dataclass(frozen=True)
class Found:
    """What became of a mistake in a dtype.

    Args:
        ratio: Its effect, in units of what is allowed; in 64 and 32 bits its error.
        step: The first divergent one, or "".
        result: "caught", "elsewhere" (at another step), "undetectable", "not judged" or "missed".
        differ: Of a discrete step, how many decisions or counts.
    """

    ratio: float
    step: str
    result: str
    differ: int = 0


@contextmanager
def allowing(times: float) -> Iterator[None]:
    """Let `check` allow so many times as much."""
    limit = limiting.tolerance_of

    def more(*words: Any) -> float:
        return times * limit(*words)

    with (
        np.errstate(all="ignore"),  # limits may be of any size
        patch.object(limiting, "tolerance_of", more),
        patch.multiple(
            tying,
            tolerance_of=more,
            TIE_SHARE=times * tying.TIE_SHARE,
            ERROR_FACTOR=times * tying.ERROR_FACTOR,
        ),
    ):
        limiting.step_tolerances.cache_clear()
        yield
    limiting.step_tolerances.cache_clear()


def kind_of(step: str) -> str:
    """A step, of any block."""
    return re.sub(r"\.\d+\.", ".*.", step)


def ratio_of(case: Case, dtype: str, step: str, actual: Arrays) -> float:
    """How many times as much `check` would have to allow to let a step through."""
    if step not in actual:
        return inf
    truth = case.expected[step]
    own = reference_run(case, dtype).errors[step]
    error, _, fault = error_of(step, actual[step], truth, measure_of(step, truth.dtype))
    if error == 0 or (fault and error == inf):
        return inf if fault else 0.0
    if own == inf:
        return 0.0  # refimpl itself is not near it, so that nothing is too far off
    tolerance = limiting.step_tolerances(case, dtype)[step]
    if tolerance and step != "owl.signal" and not step.startswith("sparsegpt"):
        return error / tolerance

    def passes(power: float) -> bool:
        with allowing(2.0**power):
            return check(case, {step: actual[step]}, (step,), dtype).first is None

    low, high = -20.0, 20.0
    if not passes(high):
        return error / tolerance if tolerance else inf
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return 2.0**high


def judge(mistake: Mistake, case: Case) -> dict[str, Found]:
    """What became of a mistake, by dtype."""
    wrong = project(mistake)
    exact = arrays_of(wrong, case, "float64")
    made = {}
    for dtype in mistake.dtypes:
        actual = exact if dtype == "float64" else arrays_of(wrong, case, dtype)
        report = check(case, actual, dtype=dtype)
        first = "" if report.first is None else report.first.step
        differ = 0
        if dtype in ALL[:2]:
            step = first or mistake.step
            ratio = ratio_of(case, dtype, step, actual)
            result = "missed" if not first else "caught" if first == mistake.step else "elsewhere"
            if report.first is not None and case.expected[step].dtype.kind != "f":
                differ = int(report.first.error)
        else:
            kind = kind_of(mistake.step)
            ratios = {
                name: ratio_of(case, dtype, name, exact)
                for name in case.expected
                if kind_of(name) == kind
            }
            ratio = max(ratios.values())
            large = {name for name, x in ratios.items() if x >= COUNTS}
            judged = {s.step for s in report.steps if s.status in ("pass", "divergent")}
            if first:
                result = "caught" if kind_of(first) == kind else "elsewhere"
            elif not large:
                result = "undetectable"
            else:
                result = "missed" if large & judged else "not judged"
        made[dtype] = Found(ratio, first, result, differ)
    return made


def judge_all() -> tuple[dict[str, dict[str, Found]], list[str]]:
    """Every mistake, and where the right candidate is refused on the same cases."""
    made: dict[str, dict[str, Found]] = {}
    refused = []
    right = project()
    for name in dict.fromkeys(x.case for x in MISTAKES.values()):
        case = oracle_case(name)
        for dtype in ALL:
            first = check(case, arrays_of(right, case, dtype), dtype=dtype).first
            if first is not None:
                refused.append(f"{name}, {dtype}, at {first.step}")
        for mistake, entry in MISTAKES.items():
            if entry.case == name:
                made[mistake] = judge(entry, case)
    return {name: made[name] for name in MISTAKES}, refused


def shown(found: Found | None) -> str:
    """A cell: a mistake as a multiple of the tolerance; in parentheses if it is not caught."""
    if found is None:
        return ""
    number = f"{found.ratio:.2g}" if found.ratio < 100 else f"{found.ratio:.0e}"
    number = number.replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    if found.ratio == inf:
        number = f"{found.differ} differ" if found.differ else "any"
    return {
        "caught": number,
        "elsewhere": f"({number}), at {found.step}",
        "undetectable": f"({number})",
        "not judged": f"({number}: not judged)",
        "missed": f"MISSED: {number}",
    }[found.result]


def totals(made: dict[str, dict[str, Found]]) -> list[str]:
    """How many were caught, by dtype."""
    lines = []
    for dtype in ALL:
        counted = Counter(x[dtype].result for x in made.values() if dtype in x)
        parts = ", ".join(f"{n} {result}" for result, n in counted.most_common())
        lines.append(f"{dtype}: {counted.total()} mistakes: {parts}")
    return lines


def mistakes_page(made: dict[str, dict[str, Found]]) -> str:
    """How many mistakes were caught, and a table for each area."""
    parts = ["\n".join(f"- {line}" for line in totals(made))]
    for area, mistakes in AREAS.items():
        rows = [
            (
                name, mistake.case, f"`{made[name]['float32'].step}`",
                *(shown(made[name].get(dtype)) for dtype in ALL),
            )
            for name, mistake in mistakes.items()
        ]  # fmt: skip
        parts.append(markdown((area, "case", "caught at", *ALL), rows))
    return "\n\n".join(parts)


def fill(page: Path, region: str, text: str) -> None:
    """Put text between the marks of a region."""
    start, end = f"<!-- {region} -->\n", f"<!-- end of {region} -->"
    before, rest = page.read_text("utf-8").split(start)
    page.write_text(f"{before}{start}\n{text}\n\n{end}{rest.split(end)[1]}", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("mistakes", "shapes"), help="one of the two")
    parser.add_argument("--shapes", type=int, default=20, help="how many right candidates")
    parser.add_argument("--first", type=int, default=0, help="number of the first shape")
    parser.add_argument("--dtypes", nargs="+", choices=ALL, default=ALL, help="of the shapes")
    parser.add_argument("--stepwise", action="store_true", help="shapes: each step from the case's")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--log", type=Path, help="results of shapes, a line each, added to it")
    parser.add_argument("--page", type=Path, help="fill the marked regions of this page")
    given = parser.parse_args()
    packages = ("refimpl", "numpy", "torch", "transformers")
    print(", ".join(f"{name} {version(name)}" for name in packages), flush=True)
    failed, regions = False, {}
    if given.only != "shapes":
        made, refused = judge_all()
        regions["mistakes"] = mistakes_page(made)
        print(*(f"right, refused: {x}" for x in refused), sep="\n")
        failed = bool(refused) or any(
            x.result == "missed" or (x.result == "elsewhere" and dtype in ALL[:2])
            for by in made.values()
            for dtype, x in by.items()
        )
    if given.only != "mistakes":
        with tempfile.TemporaryDirectory() as away:
            log = given.log or Path(away) / "shapes.jsonl"
            numbers = range(given.first, given.first + given.shapes)
            try_shapes(numbers, tuple(given.dtypes), given.stepwise, given.jobs, log)
            rows = shape_rows(log)
        if rows:
            regions["shapes"] = markdown(list(rows[0]), [list(row.values()) for row in rows])
        failed |= any(row[x] != "0" for row in rows for x in ("divergent", "crash"))
    for region, text in regions.items():
        print(text, flush=True)
        if given.page:
            fill(given.page, region, text)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
