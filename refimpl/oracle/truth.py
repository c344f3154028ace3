"""What every step should be by what a candidate wrote before, how far rounding may move it."""

import fnmatch
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle import measures
from refimpl.oracle.case import FACTOR, Case, case_inputs
from refimpl.oracle.dense_steps import (
    EXPERIMENTS,
    RATIO,
    StepInputs,
    by_noise,
    coefficient_of,
)
from refimpl.oracle.measures import (
    EPS,
    Arrays,
    OwnErrors,
    error_of,
    measure_of,
    tolerance_of,
)
from refimpl.oracle.rounding import ARITHMETIC, FEWER, RoundedArray, rounding
from refimpl.oracle.steps import TABLE, every_array
from refimpl.pruners.pruner import SharedFactor, inverse_of_upper

Start = (
    str | frozenset[str]
)  # steps without errors: "stepwise" all, "chained" none, or some
FEWER_BITS = (0, 8, 7)  # bits less than float32, in whose units own errors are
ENDS = (
    ".drift",
    ".alignment",
    RATIO,
    ".stderr",
    ".divergence",
)  # of steps of `EXPERIMENTS`


@dataclass(frozen=True, eq=False, kw_only=True)
class Truth(StepInputs):
    """What every step should be for one candidate, as `values`, of blocks that are not shown, too.

    The candidate wrote `actual`, in the dtype `computed_in`. The usable part of it is `given`: the
    values are computed from it. `missing` names, for each step, its inputs that are not given.
    """

    case: Case
    actual: Arrays
    computed_in: str

    def start_of(self, step: str) -> Start:
        """Which steps are exact: all, if what a step reads was written; else what was.

        Errors of experiments and of the method begin at the tokens. SparseGPT's products are steps
        of some blocks alone.
        """
        missing = self.missing[step]
        unwritten = any(
            x in self.case.expected or x.endswith(".products") for x in missing
        )
        if not unwritten and not is_experiment(step):
            return "stepwise"
        return (
            measures.stage_of(step) == "forward" and frozenset(self.given)
        ) or "chained"

    def behind(self, step: str) -> set[str]:
        """What a step is computed from that was not written."""
        behind, more = set[str](), {step}
        while more := {x for y in more for x in self.missing.get(y, ())} - behind:
            behind |= more
        return behind

    def own_error(self, step: str) -> float:
        """Refimpl's own error of a step, from where the candidate did not write its inputs."""
        return own_errors(self.case, self.computed_in, self.start_of(step))[step]

    def tolerance(self, step: str) -> float:
        """The largest error of a step, with that of its inputs; 0 for counts and bits."""
        dtype, right = self.computed_in, self.case.expected[step]
        tolerance = tolerance_of(step, right, self.own_error(step), dtype)
        if step.endswith((".base", ".corrected")):
            floor = tolerance_of(step, right, 0.0, dtype)
            tolerance = max(tolerance, self._moved(step) + floor)
        if (
            step == "coarse.stderr"
        ):  # a difference of coefficients: off by as much as these
            ratio = coefficient_of("coarse.")
            largest = self.case.expected[ratio].max()
            tolerance += self.tolerance(ratio) * largest / (right.max() or 1.0)
        return tolerance + (
            moved_by_rounding(self.case, step, dtype) if tolerance else 0.0
        )

    def _off(self, step: str) -> float:
        """How far what a step is made of may be off."""
        if step in self.given:
            return EPS.get(self.actual[step].dtype.name, 0.0) / 2
        return self.tolerance(step)

    def _moved(self, step: str) -> float:
        """How far a base moves with its signals; a corrected one also with what corrects it."""
        name, _, last = step.partition(".")
        base = name if name in self.recipe.bases else self.recipe.bases[0]
        moved, (by, _) = 0.0, self.corrected_by(name)
        for signal in self.needs(base):
            how = self.number(signal), self._off(signal)
            moved = moved_by(lambda x: self.allocation(step, self.base(base, x)), *how)
        if last != "base":
            how = self.number(by), self._off(by)
            moved += moved_by(lambda x: self.allocation(step, errors=x), *how)
        return moved


def is_experiment(step: str) -> bool:
    """Whether a step is a drift, an alignment, a divergence, or made of them."""
    return step.endswith(ENDS) and (step.startswith(EXPERIMENTS) or step == RATIO)


def truth_of(
    case: Case, actual: Arrays, dtype: str, wanted: Collection[str] | None = None
) -> Truth:
    """The steps from what a candidate wrote, and from the tokens where it wrote nothing usable."""
    given = usable(case, actual)
    clean = case.expected
    by_case = {
        x: y
        for x, y in clean.items()
        if is_experiment(x) and not x.startswith("pruned.")
    }
    wanted = None if wanted is None else {*wanted} - by_case.keys()
    table = tuple(x for x in TABLE if x is not by_noise)
    for some in (given, {}):
        truth = Truth(
            case.model,
            case.recipe,
            case.inputs["token_ids"],
            given=some,
            clean=clean,
            case=case,
            actual=actual,
            computed_in=dtype,
            wanted=wanted,
        )
        truth.values.update(by_case)
        try:
            arrays = every_array(truth, table)
            break
        except (RefimplError, np.linalg.LinAlgError):
            if not some:
                raise
    truth.missing.update(
        {x: frozenset() for x in by_case.keys() - truth.missing.keys()}
    )
    truth.values.update({k: np.asarray(x) for k, x in arrays.items()})
    return truth


def usable(case: Case, actual: Arrays) -> Arrays:
    """The arrays that later steps can be computed from: of the right shape and possible numbers."""
    found = dict[str, Array]()
    experts = case.model.config.experts
    for name in case.expected.keys() & actual.keys():
        array = actual[name]
        truth = case.expected[name]
        right = not error_of(name, array, truth)[2]
        if right and name.endswith(ROUTER) and experts is not None:
            right = bool((np.bitwise_count(array).sum(axis=-1) == experts.top_k).all())
        if right:
            found[name] = array.astype(np.float64) if truth.dtype.kind == "f" else array
    return found


def moved_by(function: Callable[[Array], Array], x: Array, relative: float) -> float:
    """How far a function of x, [L] or [L, ...], moves when each of x is `relative` off."""
    at, factors = function(x), 1 + min(relative, 1.0) * np.eye(len(x))
    moved = sum(np.abs(function((x.T * one).T) - at) for one in factors)
    return float(np.max(moved) / (np.abs(at).max() or 1.0))


def own_errors(case: Case, dtype: str, start: Start = "chained") -> OwnErrors:
    """Refimpl's own errors in a dtype by step: those of the case's folder, or measured once."""
    key = f"{start if isinstance(start, str) else sorted(start)}.{dtype}"
    if key not in case.errors:
        case.errors[key] = _measured(case, dtype, start)
    return case.errors[key]


def _measured(case: Case, dtype: str, start: Start) -> OwnErrors:
    """The largest error by step of several samples (docs/explanation/tolerances.md)."""
    narrow = dtype in measures.NARROW
    forward = narrow or not isinstance(start, str)
    arrays = _computed(case, dtype, start, ARITHMETIC.get(dtype), forward)
    scale = 2.0**-FEWER if dtype == "float64" else 1.0
    errors = {
        name: x * scale for name, x in pooled_errors(case.expected, arrays).items()
    }
    for fewer in FEWER_BITS[narrow:]:  # float32 itself is not fused
        for name, x in _sample(case, start, fewer, forward, narrow).items():
            errors[name] = max(errors[name], x * EPS[dtype])
    if forward:
        return errors

    def raise_to(least: float, kind: str) -> None:
        for name in fnmatch.filter(errors, kind):
            errors[name] = max(errors[name], least)

    states = own_errors(case, dtype) if start == "stepwise" else errors
    tokens = case.inputs["token_ids"].size
    rho = max(
        (x for name, x in states.items() if name.endswith(".resid_post")), default=0.0
    )
    for experiment in EXPERIMENTS:
        drifts = fnmatch.filter(errors, f"{experiment}*.drift")
        least = min((float(case.expected[x].min()) for x in drifts), default=inf)
        difference = (2 / (tokens * case.model.config.hidden_size)) ** 0.5 * rho / least
        raise_to(difference, f"{experiment}*.drift")
        raise_to(difference, coefficient_of(experiment))
        raise_to(2 * difference, f"{experiment}*.alignment")  # half the square of one
        raise_to(
            2 * difference, f"{experiment}divergence"
        )  # the square of one, of logits
    if (step := "pruned.divergence") in errors:
        truth = case.expected["logits"]
        largest = case.expected[step].max()
        e = errors["logits"] * float(np.sqrt(np.mean(np.square(truth))))
        raise_to((2 / tokens) ** 0.5 * e * (2 / largest) ** 0.5, step)
        raise_to(EPS["float64"] * float(np.abs(truth).max()) / largest, step)
    worst = 0.0  # of SparseGPT's factors up to each block, as errors grow with depth
    for i in range(0 if case.recipe.only else case.model.config.num_blocks):
        for name, truth in _products(case).items():
            if f".blocks.{i}." in name:
                how = len(case.inputs["token_ids"]), case.recipe.damping
                worst = max(worst, sparsegpt_error(arrays[name], truth, *how))
        errors[f"{FACTOR}{i}"] = worst
    return errors


@lru_cache(maxsize=1)
def _products(case: Case) -> Arrays:
    """SparseGPT's products in float64, of the blocks that are not shown too."""
    every = every_array(case_inputs(case, case.expected))
    return {name: x for name, x in every.items() if name.endswith(".products")}


@lru_cache(maxsize=3 * len(FEWER_BITS))
def _sample(
    case: Case, start: Start, fewer: int, forward: bool, fused: bool
) -> OwnErrors:
    """Errors of float32 with so many bits less in units of it; of counts none."""
    kind = rounding(fewer=fewer, fused=fused) if fewer else None
    computed = _computed(case, "float32", start, kind, forward)
    errors, unit = (
        pooled_errors(case.expected, computed).items(),
        EPS["float32"] * 2.0**fewer,
    )
    return {
        k: x / unit
        for k, x in errors
        if measure_of(k) in measures.RESOLVABLE and isfinite(x)
    }


def _computed(
    case: Case, dtype: str, start: Start, kind: type[RoundedArray] | None, forward: bool
) -> Arrays:
    """Every step in a dtype that NumPy has, or rounded further; from blocks on the forward's."""
    exact = (
        [*case.expected] if start == "stepwise" else () if start == "chained" else start
    )
    choices = ("bits", "counts")
    given = {
        k: x for k, x in case.expected.items() if k in exact or measure_of(k) in choices
    }
    arrays = every_array(
        case_inputs(case, given, dtype, kind), TABLE[:1] if forward else TABLE
    )
    return {name: np.asarray(x) for name, x in arrays.items()}


def pooled_errors(truth: Arrays, computed: Arrays) -> dict[str, float]:
    """Errors by step; of drifts, alignments, corrections, perplexities the largest counts."""
    errors = {
        k: error_of(k, computed[k], x)[0] for k, x in truth.items() if k in computed
    }
    kinds = [f"{x}*.{y}" for x in EXPERIMENTS for y in ("drift", "alignment")]
    for kind in (*kinds, "*.corrected", "*.perplexity"):
        alike = [x for x in fnmatch.filter(errors, kind) if isfinite(errors[x])]
        errors |= dict.fromkeys(alike, max((errors[x] for x in alike), default=0.0))
    for experiment in EXPERIMENTS:
        ratio = coefficient_of(experiment)
        if ratio in errors:
            errors[ratio] = max(errors[ratio], errors[f"{experiment}0.drift"])
    return errors


def moved_by_rounding(case: Case, step: str, dtype: str) -> float:
    """What SparseGPT's steps behind block 0 move by, as its weights are rounded as in the file."""
    if not step.startswith("sparsegpt") or ".blocks.0." in step:
        return 0.0
    names = {weight.stored.numpy_dtype.name for weight in case.model.weights.values()}
    unit = max((EPS[name] for name in names & EPS.keys()), default=0.0)
    return (
        measures.SPARSEGPT_FACTOR * measures.FLOOR_16 * unit
        if unit > EPS[dtype]
        else 0.0
    )


def sparsegpt_error(
    products: Array, truth: Array, sequences: int, damping: float
) -> float:
    """The largest relative error of the factor's ``diag(U)^2``, by which scores are divided."""
    factors = (
        SharedFactor(x * (2 / sequences)).factored(damping)[0]
        for x in (products, truth)
    )
    scale, right = (np.square(np.diag(inverse_of_upper(x))) for x in factors)
    return float(np.max(np.abs(scale / right - 1)))
