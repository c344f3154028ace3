"""refimpl's own errors in a dtype, and the tolerance of every step that is made of them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from math import inf, isfinite

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.case import FACTOR, Case, case_inputs, is_choice, require_steps
from refimpl.oracle.dense_steps import RATIO
from refimpl.oracle.judging.measures import (
    EPS,
    FLOOR_16,
    RESOLVABLE,
    SPARSEGPT_FACTOR,
    UNCHANGED,
    arithmetic_of,
    error_of,
    lost,
    tolerance_of,
    writing_error,
)
from refimpl.oracle.judging.records import record_of
from refimpl.oracle.judging.ties import sparsegpt_error
from refimpl.oracle.own_inputs import EXPERIMENTS, Truth
from refimpl.oracle.recipe import signal_of
from refimpl.oracle.rounding import ARITHMETIC, FEWER, RoundedArray, fewer_bits
from refimpl.oracle.steps import every_array

SAMPLES = (0, 8, 7)  # bits less than float32, in whose units they are


def own_errors(case: Case, dtype: str, stepwise: bool = False) -> Mapping[str, float]:
    """Refimpl's own errors in a dtype by step: those of the case's folder, or measured once."""
    if dtype not in EPS:
        raise RefimplError(
            f"dtype {dtype} is not supported", " or ".join(EPS), "choose one of these"
        )
    key = way_of(dtype, stepwise)
    if key not in case.errors:
        if case.kernels:
            raise RefimplError(
                f"{case.folder}: refimpl could not compute this case in {dtype}",
                "a case whose numbers are within the range of the dtype",
                "compare in another dtype",
            )
        case.errors[key] = _measured(case, dtype, stepwise)
    return case.errors[key]


def own_error(truth: Truth, step: str, dtype: str) -> float:
    """Refimpl's own error of a step, from the tokens or on the values that it was fed."""
    return own_errors(truth.case, dtype, not truth.is_chained(step))[step]


def errors_to_store(case: Case, dtypes: Sequence[str]) -> dict[str, Array]:
    """Errors by way and dtype, as `Case.with_errors` orders them; none of a dtype out of range."""
    found = {}
    for stepwise in (False,) if case.recipe.sample_tokens else (False, True):
        for dtype in dtypes:
            with suppress(RefimplError):
                errors = own_errors(case, dtype, stepwise)
                stored = np.array([errors[x] for x in case.with_errors], np.float32)
                found[way_of(dtype, stepwise)] = stored
    return found


def way_of(dtype: str, stepwise: bool) -> str:
    """The name of a candidate's dtype and way among the errors of a case."""
    return f"{'stepwise' if stepwise else 'chained'}.{dtype}"


def _measured(case: Case, dtype: str, stepwise: bool) -> Mapping[str, float]:
    """The largest error by step of several samples (docs/explanation/tolerances.md)."""
    arrays = _computed(case, dtype, stepwise, ARITHMETIC.get(dtype))
    require_steps(case, arrays)
    scale = 2.0**-FEWER if dtype == "float64" else 1.0
    errors = {
        name: x * scale if arithmetic_of(name, dtype, stepwise) == dtype else 0.0
        for name, x in pooled_errors(case.expected, arrays).items()
    }
    for sample in SAMPLES:
        for name, x in _sample(case, stepwise, sample).items():
            errors[name] = max(errors[name], x * EPS[arithmetic_of(name, dtype, stepwise)])
    states = own_errors(case, dtype) if stepwise else errors
    for experiment in EXPERIMENTS:
        difference = _difference_error(case, states, experiment)
        for name in errors:
            if is_drift(name, experiment) or name == coefficient_of(experiment):
                errors[name] = max(errors[name], difference)
            elif name.startswith(experiment) and record_of(name).measure == "lost":
                errors[name] = max(errors[name], 2 * difference)  # half the square of one
            elif name == f"{experiment}divergence":  # the square of a difference, of logits
                errors[name] = max(
                    errors[name], 2 * difference, _divergence_error(case, name, errors["logits"])
                )
    return errors | _factor_errors(case, arrays)


def _factor_errors(case: Case, arrays: Mapping[str, Array]) -> dict[str, float]:
    """The largest error of SparseGPT's factors up to each block, as errors grow with depth."""
    if case.recipe.only:
        return {}
    sequences, damping, worst = len(case.inputs["token_ids"]), case.recipe.damping, 0.0
    errors = {}
    for block in range(case.model.config.num_blocks):
        for name, truth in _products(case).items():
            if f".blocks.{block}." in name:
                worst = max(worst, sparsegpt_error(arrays[name], truth, sequences, damping))
        errors[f"{FACTOR}{block}"] = worst
    return errors


@lru_cache(maxsize=1)
def _products(case: Case) -> Mapping[str, Array]:
    """SparseGPT's products in float64, of the blocks that are not shown too."""
    every = every_array(case_inputs(case, case.expected))
    return {name: x for name, x in every.items() if name.endswith(".products")}


def is_drift(name: str, experiment: str) -> bool:
    """Whether a step is a drift of one of the `EXPERIMENTS`."""
    return name.startswith(experiment) and name.endswith(".drift")


def coefficient_of(experiment: str) -> str:
    """The coefficients of one of the `EXPERIMENTS`."""
    return experiment.replace("perturbed.", "") + "absorption_coefficient"


def _difference_error(case: Case, errors: Mapping[str, float], experiment: str) -> float:
    """The error of the difference of two rounded states: ``sqrt(2) rho / (d sqrt(n))``."""
    rho = max((x for name, x in errors.items() if name.endswith(".resid_post")), default=0.0)
    drifts = [x for name, x in case.expected.items() if is_drift(name, experiment)]
    least = min((float(x) for every in drifts for x in every if x > 0), default=inf)
    n = case.inputs["token_ids"].size * case.model.config.hidden_size
    return (2 / n) ** 0.5 * rho / least


def _divergence_error(case: Case, step: str, logits: float) -> float:
    """The error of divergences, as a share of the largest, if logits err by so much."""
    truth, largest = case.expected["logits"], case.expected[step].max(initial=0.0) or 1.0
    e = logits * float(np.sqrt(np.mean(np.square(truth))))
    by_logits = (2 / case.inputs["token_ids"].size) ** 0.5 * e * (2 / largest) ** 0.5
    return max(by_logits, EPS["float64"] * float(np.abs(truth).max()) / largest)


def _sample(case: Case, stepwise: bool, fewer: int) -> Mapping[str, float]:
    """Errors of float32 with so many bits less in units of it; of counts none."""
    key = f"{way_of('float32', stepwise)}.{fewer}"
    if key not in case.errors:
        kind = fewer_bits(fewer) if fewer else None
        unit = EPS["float32"] * 2.0**fewer
        errors = pooled_errors(case.expected, _computed(case, "float32", stepwise, kind))
        case.errors[key] = {
            name: x / unit
            for name, x in errors.items()
            if record_of(name).measure in RESOLVABLE and isfinite(x)
        }
    return case.errors[key]


def _computed(
    case: Case, dtype: str, stepwise: bool, kind: type[RoundedArray] | None
) -> Mapping[str, Array]:
    """Every step in a dtype that NumPy has, or rounded further."""
    given = {k: x for k, x in case.expected.items() if stepwise or is_choice(k)}
    try:
        arrays = every_array(case_inputs(case, given, dtype, kind))
        return {name: np.asarray(x) for name, x in arrays.items()}
    except RefimplError as error:
        raise RefimplError(
            f"{case.folder}: refimpl cannot compute this case in {dtype} ({error.problem})",
            "a case whose numbers are within the range of the dtype",
            "compare in another dtype",
        ) from error


def pooled_errors(truth: Mapping[str, Array], computed: Mapping[str, Array]) -> dict[str, float]:
    """Errors by step; of drifts, alignments, corrections, perplexities the largest counts."""
    errors = {}
    for step, value in truth.items():
        found = computed[step]
        if step.endswith((".drift", "absorption_coefficient")):
            undefined = value == 0 if step.endswith(".drift") else np.isnan(value)
            found = np.where(undefined, value, found)
        elif record_of(step).measure == "lost":
            found = np.where(lost(value) <= UNCHANGED, value, found)
        errors[step] = error_of(step, found, value)[0]
    kinds = [(x, y) for x in EXPERIMENTS for y in (".drift", ".alignment")]
    for start, end in (*kinds, ("", ".corrected"), ("", ".perplexity")):
        alike = [x for x in errors if x.startswith(start) and x.endswith(end)]
        alike = [x for x in alike if isfinite(errors[x])]
        errors |= dict.fromkeys(alike, max((errors[x] for x in alike), default=0.0))
    for experiment in EXPERIMENTS:
        ratio = coefficient_of(experiment)
        if ratio in errors:
            errors[ratio] = max(errors[ratio], errors[f"{experiment}0.drift"])
    return errors


class StepTolerances(dict[str, float]):
    """The largest error by step, computed when it is asked for; 0 for counts and bits.

    That of an allocation has in it how far it moves with the numbers that it is made of.
    """

    def __init__(self, truth: Truth, dtype: str, actual: Mapping[str, Array]) -> None:
        self.truth, self.dtype, self.actual = truth, dtype, actual

    def __missing__(self, step: str) -> float:
        case, truth, dtype = self.truth.case, self.truth, self.dtype
        right, fed = case.expected[step], not truth.is_chained(step)
        tolerance = tolerance_of(step, right, own_error(truth, step, dtype), dtype, fed)
        if step.endswith((".base", ".corrected")) and not truth.stepwise:
            floor = tolerance_of(step, right, 0.0, dtype, fed)
            tolerance = max(tolerance, self._moved(step) + floor)
        if step in self.actual:
            tolerance += writing_error(step, right, self.actual[step], dtype, fed)
        if step == "coarse.stderr":  # a difference of coefficients: off by as much as these
            ratio = coefficient_of("coarse.")
            tolerance += self[ratio] * case.expected[ratio].max() / (right.max() or 1.0)
        self[step] = tolerance + (moved_by_rounding(case, step, dtype) if tolerance else 0.0)
        return self[step]

    def _off(self, step: str) -> float:
        """How far what a step is made of may be off."""
        given = step in self.truth.given
        return EPS.get(self.actual[step].dtype.name, 0.0) / 2 if given else self[step]

    def _moved(self, step: str) -> float:
        """How far a base moves with its signals; a corrected one also with what corrects it."""
        inputs, (name, _, last) = self.truth.inputs, step.partition(".")
        base = name if name in inputs.recipe.bases else inputs.recipe.bases[0]
        signal, moved, (errors, log) = signal_of(base), 0.0, inputs.correction(name)

        def allocation(dense: Array, by: Array) -> Array:
            if last == "base":
                return inputs.allocated(name, dense).base_sparsity
            return inputs.corrected(base, dense, log(by))

        if signal in inputs.known:
            moved = moved_by(
                lambda x: allocation(inputs.base(base, {signal: x}), errors),
                inputs.number(signal),
                self._off(signal),
            )
        if last == "base":
            return moved
        dense, sources = inputs.base(base, {}), {"arrival": "pruned.0.drift", base: RATIO}
        off = self._off(sources.get(name, "pruned.divergence"))
        return moved + moved_by(lambda x: allocation(dense, x), errors, off)


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


def moved_by_rounding(case: Case, step: str, dtype: str) -> float:
    """What SparseGPT's steps behind block 0 move by, as its weights are rounded as in the file."""
    if not step.startswith("sparsegpt") or ".blocks.0." in step:
        return 0.0
    names = {weight.stored.numpy_dtype.name for weight in case.model.weights.values()}
    unit = max((EPS[name] for name in names & EPS.keys()), default=0.0)
    return SPARSEGPT_FACTOR * FLOOR_16 * unit if unit > EPS[dtype] else 0.0
