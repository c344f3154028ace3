"""A candidate against a case: step by step, and where it first went wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.compare import Choice, Judged, judged
from refimpl.oracle.steps import steps
from refimpl.oracle.tolerance import dtype_of, own_errors, tolerance_of
from refimpl.pruning.pattern import parse_pattern

Verdict = Literal["pass", "divergent", "inconclusive"]
EXIT: Mapping[Verdict, int] = {"pass": 0, "divergent": 1, "inconclusive": 3}
TIES = 1e-3  # largest share of a linear's decisions that may be near ties, and always two


@dataclass(frozen=True)
class Report:
    """Whether a candidate computes what a case says.

    Args:
        case: The case.
        dtype: What the candidate computed in.
        steps: Every step that was asked for, in the order of execution.
        unknown: Names of the candidate that are no step.
    """

    case: Case
    dtype: str
    steps: tuple[Judged, ...]
    unknown: tuple[str, ...]

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
) -> Report:
    """Hold a candidate against a case.

    Args:
        case: From `read_case`.
        actual: The candidate's arrays by the names of the steps.
        only: Which steps are asked for, as shell patterns; every one that matches must be there.
        dtype: What the candidate computed in; the coarsest of its float arrays if None.

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
    wanted = [name for name in case.expected if any(fnmatchcase(name, p) for p in only)]
    if not wanted:
        raise RefimplError(
            f"--only {' '.join(only)}: no such step",
            f"names such as {', '.join(list(case.expected)[:3])}, or patterns such as 'blocks.*'",
            "look into the case's case.json",
        )
    dtype = dtype_of(actual) if dtype is None else dtype
    every = replace(case.recipe, shown=tuple(range(case.model.config.num_blocks)))
    found = steps(case.model, case.inputs["token_ids"], every, np.float32)
    own = own_errors(case.expected, found)
    made: list[Judged] = []
    tied: set[str] = set()  # pruners in which a choice went the other way
    for name in wanted:
        pruner = name.split(".")[0]
        if pruner in tied:
            made.append(Judged(name, "conditional", fault="after a near tie"))
            continue
        truth, score = case.expected[name], f"{name.removesuffix('.keep')}.score"
        limit = tolerance_of(name, truth, own[name], dtype)
        one = judged(name, actual, truth, own[name], limit)
        if one.status == "divergent" and name.endswith(".keep") and score in found:
            worst = max(own[step] for step in own if fnmatchcase(step, f"{pruner}.*.score"))
            loose, size = tolerance_of(score, found[score], worst, dtype), found[score].size
            group = parse_pattern(case.recipe.pattern).group if pruner == "pattern" else 0
            choice = Choice(found[score], group, loose, max(2, int(TIES * size)))
            one = judged(name, actual, truth, own[name], limit, choice)
        if one.near_ties:
            tied.add(pruner)
        made.append(one)
    return Report(case, dtype, tuple(made), tuple(sorted(actual.keys() - case.expected.keys())))


def read_candidate(path: Path) -> dict[str, Array]:
    """Read what a candidate computed.

    Args:
        path: A safetensors file.

    Returns:
        Arrays by name.

    Raises:
        RefimplError: No safetensors file.

    Source:
        ours.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RefimplError(
            f"{path}: cannot be read ({error})",
            "a safetensors file with one tensor per step",
            "check the path, and how the file was written",
        ) from error
