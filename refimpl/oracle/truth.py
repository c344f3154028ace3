"""What every step should be, by what a candidate wrote for earlier steps, and its tolerance."""

import fnmatch
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, case_inputs, entries, is_choice, require_steps
from refimpl.oracle.dense_steps import EXPERIMENTS, RATIO, StepInputs, by_noise, coefficient_of
from refimpl.oracle.judging import measures
from refimpl.oracle.judging.measures import EPS, error_of, tolerance_of
from refimpl.oracle.judging.ties import unpacked
from refimpl.oracle.own_errors import moved_by_rounding, own_errors
from refimpl.oracle.recipe import signal_of
from refimpl.oracle.steps import TABLE, every_array

Arrays = Mapping[str, Array]
Names = Collection[str] | None
ENDS = (".drift", ".alignment", RATIO, ".stderr", ".divergence")  # of steps of `EXPERIMENTS`


@dataclass(frozen=True, eq=False, kw_only=True)
class Truth(StepInputs):
    """What every step should be for one candidate, as `values`, of blocks that are not shown, too.

    The candidate wrote `actual`, in the dtype `computed_in`. The usable part of it is `given`: the
    values are computed from it. `missing` names, for each step, its inputs that are not given.
    """

    case: Case
    actual: Mapping[str, Array]
    computed_in: str
    stepwise: bool

    def is_chained(self, step: str) -> bool:
        """Whether errors of earlier steps are part of it, as these, or states, were not written.

        SparseGPT's products are steps of the blocks that are shown; others are never written.
        """
        expected, missing = self.case.expected, self.missing[step]
        unwritten = any(x in expected or x.endswith(".products") for x in missing)
        return not self.stepwise and (is_experiment(step) or unwritten)

    def own_errors(self, stepwise: bool = False) -> Mapping[str, float]:
        """Refimpl's own errors in the candidate's dtype, from the tokens or step by step."""
        return own_errors(self.case, self.computed_in, stepwise)

    def own_error(self, step: str) -> float:
        """Refimpl's own error of a step, from the tokens or on the values that it was fed."""
        return self.own_errors(not self.is_chained(step))[step]

    def tolerance(self, step: str) -> float:
        """The largest error of a step; 0 for counts and bits.

        That of an allocation has in it how far it moves with the numbers that it is made of.
        """
        dtype, right, fed = self.computed_in, self.case.expected[step], not self.is_chained(step)
        tolerance = tolerance_of(step, right, self.own_error(step), dtype, fed)
        if step.endswith((".base", ".corrected")) and not self.stepwise:
            floor = tolerance_of(step, right, 0.0, dtype, fed)
            tolerance = max(tolerance, self._moved(step) + floor)
        if step in self.actual:
            tolerance += measures.writing_error(step, right, self.actual[step], dtype, fed)
        if step == "coarse.stderr":  # a difference of coefficients: off by as much as these
            ratio = coefficient_of("coarse.")
            largest = self.case.expected[ratio].max()
            tolerance += self.tolerance(ratio) * largest / (right.max() or 1.0)
        return tolerance + (moved_by_rounding(self.case, step, dtype) if tolerance else 0.0)

    def _off(self, step: str) -> float:
        """How far what a step is made of may be off."""
        if step in self.given:
            return EPS.get(self.actual[step].dtype.name, 0.0) / 2
        return self.tolerance(step)

    def _moved(self, step: str) -> float:
        """How far a base moves with its signals; a corrected one also with what corrects it."""
        name, _, last = step.partition(".")
        base = name if name in self.recipe.bases else self.recipe.bases[0]
        signal, moved, (errors, log) = signal_of(base), 0.0, self.correction(name)

        def allocation(dense: Array, by: Array) -> Array:
            if last == "base":
                return self.allocated(name, dense).base_sparsity
            return self.allocated(base, dense, log(by)).corrected_sparsity

        if signal in self.known:
            moved = moved_by(
                lambda x: allocation(self.base(base, {signal: x}), errors),
                self.number(signal),
                self._off(signal),
            )
        if last == "base":
            return moved
        dense, off = self.base(base), self._off("pruned.divergence" if name != base else RATIO)
        return moved + moved_by(lambda x: allocation(dense, x), errors, off)


def is_experiment(step: str) -> bool:
    """Whether a step is a drift, an alignment, a divergence, or made of them."""
    return step.endswith(ENDS) and (step.startswith(EXPERIMENTS) or step == RATIO)


def truth_of(
    case: Case,
    actual: Arrays,
    dtype: str,
    stepwise: bool = False,
    chained: bool = False,
    wanted: Names = None,
) -> Truth:
    """Compute the steps from what a candidate wrote, and from the tokens what it did not write.

    All from the tokens, if its numbers are beyond any range.
    With the steps that are wanted come later ones that explain near ties: of tokens, of outliers.
    """
    if wanted is not None:
        later = [f"*.{ROUTER}"] + ["pruned.*.squares"] * ("owl.signal" in wanted)
        wanted = {*wanted}.union(*(fnmatch.filter(case.expected, x) for x in later))
    given = {k: x for k, x in usable(case, actual).items() if not chained or is_choice(k)}
    try:
        return _truth(case, actual, dtype, stepwise, given, wanted)
    except (RefimplError, np.linalg.LinAlgError):
        if not actual:
            raise
        return _truth(case, actual, dtype, stepwise, {}, wanted)


def _truth(
    case: Case, actual: Arrays, dtype: str, stepwise: bool, given: Arrays, wanted: Names
) -> Truth:
    """The truth of what is given; of a step-wise candidate the case's values are."""
    given = {**given, **(entries(case) if stepwise else {})}
    choices = {x: y for x, y in given.items() if x.endswith(ROUTER)}
    turned = any(not np.array_equal(x, case.expected[name]) for name, x in choices.items())
    clean = {} if stepwise else dict(case.expected)
    if turned and not stepwise:  # experiments begin with states of the candidate's experts
        clean |= every_array(case_inputs(case, choices), TABLE[:1])
    by_case = {x for x in case.expected if is_experiment(x) and not x.startswith("pruned.")}
    if wanted is not None and not (turned or stepwise):
        wanted = {*wanted} - by_case
    truth = Truth(
        case.model, case.recipe, case.inputs["token_ids"], given=given, noises=case.inputs,
        clean=clean, case=case, actual=actual, computed_in=dtype, stepwise=stepwise, wanted=wanted,
    )  # fmt: skip
    truth.values.update((name, case.expected[name]) for name in by_case)
    arrays = every_array(truth, tuple(x for x in TABLE if x is not by_noise or turned or stepwise))
    if wanted is None or {*wanted} - arrays.keys():
        require_steps(case, by_case | arrays.keys())
    truth.missing.update({x: frozenset() for x in by_case - truth.missing.keys()})
    truth.values.update({k: np.asarray(x) for k, x in arrays.items()})
    return truth


def usable(case: Case, actual: Arrays) -> dict[str, Array]:
    """The arrays that later steps can be computed from: of the right shape and possible numbers."""
    found, config = dict[str, Array](), case.model.config
    for name in case.expected.keys() & actual.keys():
        array, truth = actual[name], case.expected[name]
        if error_of(name, array, truth)[2]:
            continue
        if truth.dtype.kind == "f":
            array = array.astype(np.float64)
        elif name.endswith(".counts"):
            if not ((array >= 0) & (array <= config.linear_sizes)).all():
                continue
        elif name.endswith(ROUTER):
            assert config.experts is not None
            chosen = unpacked(array.astype(np.uint8), config.experts.num_experts)
            if (chosen.sum(-1) != config.experts.top_k).any():
                continue
        found[name] = array
    return found


def moved_by(function: Callable[[Array], Array], x: Array, relative: float) -> float:
    """How far a function of x, [L] or [L, ...], moves when each of x is `relative` off."""
    at, moved = function(x), np.zeros(())
    for i in range(len(x)):
        changes = []
        for factor in (1 + min(relative, 1.0), 1 / (1 + min(relative, 1.0))):
            other = np.array(x, np.float64)
            other[i] *= factor
            changes.append(np.abs(function(other) - at))
        moved = moved + np.maximum(*changes)
    return float(moved.max() / (np.abs(at).max() or 1.0))
