"""A candidate against a case: step by step, and where it first went wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.safetensors_file import SafetensorsFile
from refimpl.model.ops import Array
from refimpl.model.weight import DTYPES
from refimpl.oracle.case import Case
from refimpl.oracle.judging.limits import limits_of
from refimpl.oracle.judging.measures import Judged, judged
from refimpl.oracle.judging.near_ties import near_zero, steps_after, ties_of
from refimpl.oracle.judging.own_errors import own_of
from refimpl.oracle.judging.tolerance import dtype_of
from refimpl.oracle.peer import as_peers

Verdict = Literal["pass", "divergent", "inconclusive"]
EXIT: Mapping[Verdict, int] = {"pass": 0, "divergent": 1, "inconclusive": 3}
READ = DTYPES | {  # safetensors' names
    f"{letter.upper()}{8 * size}": np.dtype(f"<{letter}{size}")
    for letter in "iu"
    for size in (1, 2, 4, 8)
}
READ |= {"BOOL": np.dtype(np.bool_)}


@dataclass(frozen=True)
class Report:
    """Whether a candidate computes what a case says.

    Args:
        case: The case.
        dtype: What the candidate computed in.
        steps: Every step that was asked for, in the order of execution.
        unknown: Names of the candidate that are no step.
        stepwise: Whether the candidate was fed the case's own values at each step.
    """

    case: Case
    dtype: str
    steps: tuple[Judged, ...]
    unknown: tuple[str, ...]
    stepwise: bool = False

    @property
    def first(self) -> Judged | None:
        """The first divergent step: where to look, as later ones may only follow it."""
        return next((step for step in self.steps if step.status == "divergent"), None)

    @property
    def verdict(self) -> Verdict:
        """Divergent if any step is; inconclusive if one is missing or was not judged."""
        if self.first is not None:
            return "divergent"
        return "pass" if all(step.status == "pass" for step in self.steps) else "inconclusive"


def check(
    case: Case,
    actual: Mapping[str, Array],
    only: tuple[str, ...] = ("*",),
    dtype: str | None = None,
    stepwise: bool = False,
) -> Report:
    """Hold a candidate against a case.

    Args:
        case: From `read_case`.
        actual: The candidate's arrays by the names of the steps.
        only: Which steps are asked for, as shell patterns; every one that matches must be there.
        dtype: What the candidate computed in; the coarsest of its float arrays if None.
        stepwise: Whether it was fed the case's own values at each step (docs/how-to/check.md); if
            not, it ran from the tokens, and what follows a near tie is not judged.

    Returns:
        What became of every step.

    Raises:
        RefimplError: No step asked for, or a dtype that is not compared.

    Source:
        ours.

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> case = read_case("fixtures/cases/llama")
        >>> actual = {name: value.astype(np.float32) for name, value in case.expected.items()
        ...           if value.dtype == np.float64}
        >>> report = check(case, actual, only=("blocks.*", "logits"))
        >>> report.verdict, report.dtype
        ('pass', 'float32')
        >>> actual["blocks.2.v"] = -actual["blocks.2.v"]
        >>> check(case, actual).first.step
        'blocks.2.v'
    """
    wanted = {name for name in case.expected if any(fnmatchcase(name, p) for p in only)}
    if not wanted:
        raise RefimplError(
            f"--only {' '.join(only)}: no such step",
            f"names such as {', '.join(list(case.expected)[:3])}, or patterns such as 'blocks.*'",
            "look into the case's case.json",
        )
    dtype = dtype_of(actual) if dtype is None else dtype
    own = own_of(case, dtype, stepwise)
    limits = limits_of(case, dtype, stepwise)
    made: list[Judged] = []
    open_ends: set[str] = set()  # beginnings of the steps after a choice that went the other way
    for name, truth in case.expected.items():
        if name not in wanted and name not in actual:
            continue  # a choice that was not asked for matters to later steps all the same
        if name.startswith(tuple(open_ends)):
            if name in wanted:
                made.append(Judged(name, "conditional", fault="after a near tie"))
            continue
        ties = partial(ties_of, case, own, dtype, name, actual, limits)
        one = judged(name, actual, truth, own.errors[name], limits[name], ties)
        if near_zero(one, actual, truth):
            one = Judged(name, "conditional", fault="should be zero, and nearly is")
        elif one.status == "divergent" and as_peers(name, actual, case.peer, limits[name]):
            one = replace(one, fault="what the peers' code gives (docs/explanation/deviations.md)")
        elif one.near_ties and not stepwise:
            open_ends |= steps_after(case, name)
        if name in wanted:
            made.append(one)
    unknown = tuple(sorted(actual.keys() - case.expected.keys()))
    return Report(case, dtype, tuple(made), unknown, stepwise)


def read_candidate(path: str | Path) -> dict[str, Array]:
    """Read what a candidate computed.

    Args:
        path: A safetensors file.

    Returns:
        Arrays by name.

    Raises:
        RefimplError: No safetensors file, or a dtype that is not compared.

    Source:
        ours.
    """
    file = SafetensorsFile(Path(path))
    if other := [name for name, x in file.tensors.items() if x.dtype not in READ]:
        raise RefimplError(
            f"{path}: {other[0]} is of dtype {file.tensors[other[0]].dtype}",
            ", ".join(READ),
            "write it in the dtype it was computed in",
        )
    return {
        name: np.frombuffer(file.content, READ[x.dtype], prod(x.shape), x.offset).reshape(x.shape)
        for name, x in file.tensors.items()
    }
