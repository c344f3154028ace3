"""Mistakes that the oracle should name: the sample project with one edit, on cases that show it."""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from math import inf
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

sys.path.extend(map(str, Path(__file__).parents[1:3]))

from candidates import CASE_NAMES, Arrays
from crafted_cases import CRAFTED, oracle_case
from mistakes import ALL, MISTAKES, Mistake, arrays_of, project

import refimpl.oracle.near_ties as tying
from refimpl.oracle.case import Case
from refimpl.oracle.case_folders import CORE
from refimpl.oracle.check import check
from refimpl.oracle.judging.measures import error_of, tolerance_of
from refimpl.oracle.own_inputs import Truth, truth_of
from refimpl.oracle.recipe import BASES

COUNTS = 2.0  # multiple of the tolerance from which on a mistake has to be caught in 16 bits
PRUNERS = ("magnitude", "wanda", "sparsegpt", "pattern", "sparsegpt_pattern")
WAYS = ("chained", "stepwise")
RIGHT = "none"  # the candidate without a mistake
BOTH = ("float32", "bfloat16")  # step-wise, and on the core cases
OWN = tuple((way, dtype) for way in WAYS for dtype in (ALL if way == "chained" else BOTH))
ON_CORE = tuple((way, dtype) for way in WAYS for dtype in BOTH)

Runs = tuple[tuple[str, str], ...]
Line = dict[str, Any]
"""What became of a mistake on a case, by `way` and `dtype`.

`result` is "caught", "elsewhere" (at another step), "no effect", "does not run" or "not caught"; on
the mistake's own case "undetectable", "not judged" or "missed" instead of the last. `ratio` is the
error as a multiple of the tolerance, and `differ` the number of decisions or counts that are wrong.
"""


@contextmanager
def allowing(times: float) -> Iterator[None]:
    """Let `check` allow so many times as much."""

    def more(*words: Any) -> float:
        return times * tolerance_of(*words)

    def larger(truth: Truth, step: str) -> float:
        with patch.object(Truth, "tolerance", tolerance):
            return times * tolerance(truth, step)

    tolerance = Truth.tolerance
    share, factor = times * tying.TIE_SHARE, times * tying.ERROR_FACTOR
    with (
        np.errstate(all="ignore"),  # limits may be of any size
        patch.object(Truth, "tolerance", larger),
        patch.multiple(tying, tolerance_of=more, TIE_SHARE=share, ERROR_FACTOR=factor),
    ):
        yield


def kind_of(step: str) -> str:
    """A step, of any block and of any base."""
    every_base = re.sub(rf"^({'|'.join(BASES)})(?=\.(base|corrected|counts)$)", "*", step)
    return re.sub(r"\.\d+\.", ".*.", every_base)


def ratios_of(
    case: Case, way: str, dtype: str, steps: Iterable[str], actual: Arrays
) -> dict[str, float | None]:
    """The errors of steps as multiples of their tolerances; None for one that has none."""
    truth = truth_of(case, actual, dtype, way == "stepwise")

    def ratio(step: str) -> float | None:
        if step not in actual:
            return inf
        error, _, fault = error_of(step, actual[step], truth.values[step])
        if error == 0 or (fault and error == inf):
            return inf if fault else 0.0
        if truth.own_error(step) == inf:
            return 0.0  # refimpl itself is not near it, so that nothing is too far off
        return error / truth.tolerance(step) if truth.tolerance(step) else None

    return {step: ratio(step) for step in steps}


def large(case: Case, way: str, dtype: str, step: str, actual: Arrays, ratio: float | None) -> bool:
    """Whether a step is off by more than twice what is allowed."""
    tied = step == "owl.signal" or step.startswith("sparsegpt")  # may be ties beyond the tolerance
    if ratio is not None and (ratio < COUNTS or not tied):
        return ratio >= COUNTS
    with allowing(COUNTS):
        only = {step: actual[step]}
        return check(case, only, (step,), dtype, way == "stepwise").first is not None


@cache
def right_arrays(case: str) -> Arrays:
    """Those of the sample project without a mistake, from the tokens in float64."""
    return arrays_of(project(), oracle_case(case), "float64")


def judged(mistake: str, name: str, runs: Runs) -> list[Line]:
    """What became of a mistake on a case; on another than its own only whether it is caught."""
    case, entry, line = oracle_case(name), MISTAKES[mistake], {"mistake": mistake, "case": name}
    own = entry.case == name
    pruners = entry.step.endswith(".keep") or entry.step.split(".")[0] in PRUNERS

    def arrays(dtype: str, way: str) -> Arrays:
        return arrays_of(wrong, case, dtype, way == "stepwise", pruners)

    wrong = project(entry)
    steps = tuple(x for x in case.expected if pruners or x.split(".")[0] not in PRUNERS)
    try:
        exact = {"chained": arrays("float64", "chained")}
    except RuntimeError:  # an edit for another family, such as a cast that LayerNorm refuses
        if own:
            raise
        return [line | {"way": w, "dtype": d, "result": "does not run"} for w, d in runs]
    if not own and same(exact["chained"], right_arrays(name)):
        return [line | {"way": w, "dtype": d, "result": "no effect"} for w, d in runs]
    lines = []
    for way, dtype in runs:
        stepwise, first_run = way == "stepwise", (way, dtype) == ("chained", "float64")
        actual = exact[way] if first_run else arrays(dtype, way)
        report = check(case, actual, steps, dtype, stepwise)
        first = report.first and report.first.step
        found = line | {"way": way, "dtype": dtype, "first": first, "result": "not caught"}
        if first:
            at = kind_of(first) == kind_of(entry.step)
            found["result"] = "caught" if at else "elsewhere"
        if own:
            if dtype not in ALL[:2] and way not in exact:
                exact[way] = arrays("float64", way)
            effect = actual if dtype in ALL[:2] else exact[way]
            # After a near tie SparseGPT's decisions on later columns are not looked at.
            passed = [x for x in report.steps if x.status == "pass" and not x.near_ties]
            judged_steps = {x.step for x in passed}
            found |= effect_of(case, way, dtype, first or entry.step, effect)
            wide = set(found.pop("wide"))
            if not first:
                result = "missed" if wide & judged_steps else "not judged"
                found["result"] = result if wide else "undetectable"
        lines.append(found)
    return lines


def effect_of(case: Case, way: str, dtype: str, step: str, effect: Arrays) -> Line:
    """How far a step is off, as a multiple of its tolerance, or how many of its decisions are.

    In 16 bits of a mistake without rounding, in the block where it is largest.
    """
    of = [step] if dtype in ALL[:2] else [x for x in case.expected if kind_of(x) == kind_of(step)]
    ratios = ratios_of(case, way, dtype, of, effect)
    known = [x for x in ratios.values() if x is not None]
    truth = case.expected
    counted = [x for x, ratio in ratios.items() if ratio is None and x in effect]
    differ = [error_of(x, effect[x], truth[x])[0] for x in counted]
    return {
        "ratio": max(known, default=0.0),
        "differ": max(differ, default=0.0),
        "wide": [x for x in of if x in effect and large(case, way, dtype, x, effect, ratios[x])],
    }


def refused(name: str, runs: Runs) -> list[Line]:
    """Where the candidate without a mistake is refused."""
    case, lines = oracle_case(name), []
    for way, dtype in runs:
        actual = arrays_of(project(), case, dtype, way == "stepwise")
        first = check(case, actual, dtype=dtype, stepwise=way == "stepwise").first
        line = {"mistake": RIGHT, "case": name, "way": way, "dtype": dtype}
        lines.append(line | {"first": first and first.step})
    return lines


def by_other_means() -> Iterator[tuple[str, ...]]:
    """What becomes of OWL's scores that are compared with another mean than their block's."""
    score = 'wanda_score(stored[f"{name}.weight"], squares(seen[READS[name]]), len(x))'
    for of, mean in (("row", "s.mean(1, keepdim=True)"), ("linear", "s.mean()")):
        wrong = project(Mistake("owl.signal", f"⟦→(lambda s: s / {mean})(⟧{score}⟦→)⟧", ""))
        for dtype in BOTH:
            found: dict[str, list[str]] = {"divergent": [], "unresolved": [], "pass": []}
            for name in CASE_NAMES:
                actual = arrays_of(wrong, oracle_case(name), dtype, pruners=False)
                (step,) = check(oracle_case(name), actual, ("owl.signal",), dtype).steps
                size = f" ({step.error / step.tolerance:.1f})" if step.status == "pass" else ""
                found[step.status].append(f"`{name}`{size}")
            yield f"the mean of the score's {of}", dtype, *map(", ".join, found.values())


def same(actual: Arrays, other: Arrays) -> bool:
    """Whether all arrays are equal, to the bit."""
    return all(x.tobytes() == other[name].tobytes() for name, x in actual.items())


def try_case(name: str, work: list[tuple[str, Runs]], log: Path) -> None:
    """Try mistakes on a case, whose tolerances are computed once; lines are added to the log."""
    import torch

    torch.set_num_threads(1)
    for mistake, runs in work:
        lines = refused(name, runs) if mistake == RIGHT else judged(mistake, name, runs)
        with log.open("a", encoding="utf-8") as opened:
            opened.write("".join(json.dumps(x) + "\n" for x in lines))


def try_mistakes(dtypes: tuple[str, ...], jobs: int, log: Path) -> None:
    """Try every mistake on its own case and on the core cases, but for what the log holds."""
    have = {tuple(x[k] for k in ("mistake", "case", "way", "dtype")) for x in logged(log)}

    def left(mistake: str, case: str, runs: Runs) -> Runs:
        allowed = (
            dtypes if mistake == RIGHT else [x for x in dtypes if x in MISTAKES[mistake].dtypes]
        )
        return tuple(x for x in runs if x[1] in allowed and (mistake, case, *x) not in have)

    pairs = [(RIGHT, case, OWN) for case in [*CASE_NAMES, *CRAFTED]]
    pairs += [(mistake, entry.case, OWN) for mistake, entry in MISTAKES.items()]
    pairs += [(x, case, ON_CORE) for x in MISTAKES for case in CORE if MISTAKES[x].case != case]
    work: dict[tuple[str, Runs], list[tuple[str, Runs]]] = {}
    for mistake, case, runs in pairs:
        if some := left(mistake, case, runs):
            work.setdefault((case, runs), []).append((mistake, some))
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        for done in [pool.submit(try_case, case, some, log) for (case, _), some in work.items()]:
            done.result()


def logged(log: Path) -> list[Line]:
    """The lines of a log."""
    return [*map(json.loads, log.read_text("utf-8").splitlines())] if log.exists() else []
