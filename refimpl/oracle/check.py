"""A candidate against a case: step by step, and where it first went wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.model.statistics import INPUT_OF
from refimpl.model.tensors import DTYPES, SafetensorsFile
from refimpl.oracle.case import Case
from refimpl.oracle.choices import (
    Ties,
    count_ties,
    dense_scores,
    keep_ties,
    outlier_ties,
    rounding_ties,
    sparsegpt_error,
    sparsegpt_scores,
)
from refimpl.oracle.compare import Judged, judged
from refimpl.oracle.peer import as_peers
from refimpl.oracle.rounding import LESS, rounded_steps
from refimpl.oracle.steps import steps
from refimpl.oracle.stepwise import rounded_stepwise_steps, stepwise_errors, stepwise_steps
from refimpl.oracle.tolerance import FACTOR, UNITS, dtype_of, own_errors, tolerance_of
from refimpl.pruning.pattern import parse_pattern
from refimpl.pruning.sparsegpt import WIDTH

Verdict = Literal["pass", "divergent", "inconclusive"]
EXIT: Mapping[Verdict, int] = {"pass": 0, "divergent": 1, "inconclusive": 3}
READ = DTYPES | {  # safetensors' names
    f"{letter.upper()}{8 * size}": np.dtype(f"<{letter}{size}")
    for letter in "iu"
    for size in (1, 2, 4, 8)
}
READ |= {"BOOL": np.dtype(np.bool_)}
TIES = 1e-3  # largest share of a linear's decisions that may be near ties, and always two


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
    made: list[Judged] = []
    open_ends: set[str] = set()  # beginnings of the steps after a choice that went the other way
    for name, truth in case.expected.items():
        if name not in wanted and name not in actual:
            continue  # a choice that was not asked for matters to later steps all the same
        if name.startswith(tuple(open_ends)):
            if name in wanted:
                made.append(Judged(name, "conditional", fault="after a near tie"))
            continue
        limit = tolerance_of(name, truth, own.errors[name], dtype)
        ties = partial(_ties, case, own, dtype, name, actual, limit)
        one = judged(name, actual, truth, own.errors[name], limit, ties)
        if one.status == "divergent" and as_peers(name, actual, case.peer, limit):
            one = replace(one, fault="what the peers' code gives (docs/explanation/deviations.md)")
        if one.near_ties and not stepwise:
            open_ends |= _after(case, name)
        if name in wanted:
            made.append(one)
    unknown = tuple(sorted(actual.keys() - case.expected.keys()))
    return Report(case, dtype, tuple(made), unknown, stepwise)


@dataclass(frozen=True)
class Own:
    """What refimpl itself computes in a dtype.

    Args:
        found: Every step, those of all blocks among them.
        errors: How far the case's steps are off; of bits and counts, how many.
    """

    found: Mapping[str, Array]
    errors: Mapping[str, float]


@lru_cache(maxsize=8)
def own_of(case: Case, dtype: str, stepwise: bool = False) -> Own:
    """Compute a case in a dtype.

    What float64 costs is taken from two sides, the larger counts: in large, as `rounded_steps` has
    it, and as float32 costs in small, by their units.

    Args:
        case: From `read_case`.
        dtype: The candidate's.
        stepwise: Whether from the case's own values at each step.

    Returns:
        Every step, and how far it is off.

    Raises:
        RefimplError: A dtype that is not compared, or that the case's numbers do not fit into.
    """
    if dtype not in UNITS:
        raise RefimplError(f"dtype {dtype}", " or ".join(UNITS), "choose one of these")
    every = replace(case.recipe, shown=tuple(range(case.model.config.num_blocks)))
    ids, single = case.inputs["token_ids"], dtype == "float32"
    try:
        if stepwise:
            found = (stepwise_steps if single else rounded_stepwise_steps)(case, dtype)
        else:
            found = (steps if single else rounded_steps)(case.model, ids, every, dtype)
    except RefimplError as error:
        raise RefimplError(
            f"{case.folder}: cannot be computed in {dtype} ({error.problem})",
            "a case whose numbers are within the range of the dtype",
            "compare in another dtype",
        ) from error
    errors = (stepwise_errors if stepwise else own_errors)(case.expected, found)
    if dtype == "float64":
        rough, small = own_of(case, "float32", stepwise).errors, UNITS["float64"] / UNITS["float32"]
        errors = {name: max(x * 2.0**-LESS, rough[name] * small) for name, x in errors.items()}
    return Own(found, errors)


def _after(case: Case, step: str) -> set[str]:
    """Beginnings of the names of steps that another choice at this one changes."""
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    if last == "weight":  # rounded to the stored dtype the other way: refimpl's own steps are, too
        return set()
    if last not in ("signal", "counts"):
        return {f"{first}."}
    counted = {"wanda.", "sparsegpt."} if first == case.recipe.bases[0] else set()
    return counted | ({f"{first}."} if last == "signal" else set())


def _ties(
    case: Case, own: Own, dtype: str, step: str, actual: Mapping[str, Array], limit: float
) -> Ties:
    """Where a discrete step differs, if all of that is within rounding."""
    found, truth, recipe = actual[step], case.expected[step], case.recipe
    first, last = step.split(".")[0], step.rsplit(".", 1)[-1]
    linears = case.model.config.linear_shapes

    def relative(pattern: str) -> float:
        """The largest tolerance of some steps."""
        errors = [own.errors[name] for name in own.errors if fnmatchcase(name, pattern)]
        return tolerance_of("score", np.zeros(1), max(errors, default=0.0), dtype)

    if last == "counts":
        sizes = np.array([out * width for out, width in linears.values()])
        sparsity = case.expected[f"{first}.corrected"]
        slack = relative(f"{first}.corrected")
        return count_ties(found, truth, sparsity, sizes, recipe.sparsity, slack)
    if step == "owl.signal":
        scores = dense_scores(case.model, case.inputs["token_ids"])
        m = float(recipe.request("owl").options["m"])
        return outlier_ties(found, truth, scores, m, limit, relative("wanda.*.score"), TIES)
    if last == "keep":
        score, group, slack = _score(case, own, step, dtype)
        ties = keep_ties(found, truth, score, group, slack or relative(f"{first}.*.score"))
        most = max(2, TIES * score.size, FACTOR * own.errors[step])
        return ties if len(ties) <= most else ()
    if first == "sparsegpt" and last == "weight":
        stored = case.model.weights[step.removeprefix("sparsegpt.")].stored.array.dtype
        if UNITS[stored.name] > UNITS[dtype]:
            ties = rounding_ties(found, truth, stored, limit)
            return ties if len(ties) <= max(2, TIES * truth.size) else ()
    return ()


def _score(case: Case, own: Own, step: str, dtype: str) -> tuple[Array, int, float]:
    """Scores behind a decision, how they are grouped, and how far they may be off (0: unknown)."""
    pruner, _, block, linear, _ = step.split(".")
    if pruner != "sparsegpt":
        group = parse_pattern(case.recipe.pattern).group if pruner == "pattern" else 0
        return own.found[step.removesuffix("keep") + "score"], group, 0.0
    name = f"sparsegpt.blocks.{block}.{INPUT_OF[linear]}.products"
    sequences, damping = len(case.inputs["token_ids"]), case.recipe.damping
    weight = case.model.block(int(block), np.float64)[f"{linear}.weight"]
    keep = np.unpackbits(case.expected[step], axis=1, count=weight.shape[1]).astype(np.bool_)
    products = case.expected.get(name, own.found[name])
    score = sparsegpt_scores(weight, products, sequences, keep, damping)
    errors = [
        sparsegpt_error(own.found[other], total, sequences, damping)
        for other, total in case.expected.items()
        if other.endswith(".products")
    ]
    return score, -WIDTH, tolerance_of(step + "score", np.zeros(1), max(errors), dtype)


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
        name: np.frombuffer(file.map, READ[x.dtype], prod(x.shape), x.offset).reshape(x.shape)
        for name, x in file.tensors.items()
    }
