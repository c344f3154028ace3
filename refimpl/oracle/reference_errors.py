"""refimpl's own errors in a dtype, and the tolerance of every step of a case that is made of them.

A base is a steep function of signals that lie close together, and a corrected allocation one of
coefficients. A candidate whose signals are within their tolerance must not fail for that.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from math import inf, isfinite

import numpy as np

from refimpl.errors import RefimplError
from refimpl.method.correction import centred_log, clipped_log
from refimpl.model.ops import Array
from refimpl.oracle.case import FACTOR, Case, case_inputs, is_choice, require_steps
from refimpl.oracle.dense_steps import RATIO, StepInputs
from refimpl.oracle.judging.measures import (
    RESOLVABLE,
    UNCHANGED,
    error_of,
    lost,
)
from refimpl.oracle.judging.pruner_scores import sparsegpt_error
from refimpl.oracle.judging.records import record_of
from refimpl.oracle.judging.tolerance import (
    EPS,
    FLOOR_16,
    SPARSEGPT_FACTOR,
    arithmetic_of,
    tolerance_of,
    writing_error,
)
from refimpl.oracle.own_inputs import EXPERIMENTS, Truth
from refimpl.oracle.recipe import signal_of
from refimpl.oracle.rounding import (
    ARITHMETIC,
    FewerBits,
    Float32MinusEight,
    Float32MinusSeven,
    Float64MinusEight,
    RoundedArray,
)
from refimpl.oracle.steps import every_array

SAMPLES = (None, Float32MinusEight, Float32MinusSeven)  # in units of float32 with so many bits


def own_errors(case: Case, dtype: str, stepwise: bool = False) -> Mapping[str, float]:
    """Refimpl's own error in a dtype by step: those of the case's folder, or measured once.

    Of bits and counts, how many differ.
    """
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
    """Compute a case in a dtype, on its choices, or each step from all of the case's own values.

    An error is the largest of several samples: computed in the dtype; and in float32, and in
    float32 with eight and with seven bits fewer, in their units. A step that ends in few numbers is
    a sum of errors of either sign, which may be near zero by chance; and where errors grow along
    one direction, as in a sharp softmax, one number stands for all of them.
    """
    arrays = _computed(case, dtype, stepwise, ARITHMETIC.get(dtype))
    require_steps(case, arrays)
    scale = 2.0**-Float64MinusEight.fewer if dtype == "float64" else 1.0
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
    """The error of the difference of two rounded states: ``sqrt(2) rho / (d sqrt(n))``.

    Each is off by rho of itself, in a direction of its own, and they lie d apart. Of n numbers with
    errors of either sign, the part along the difference is one in sqrt(n). Rho is the largest of
    the chained errors of states, step by step, too, as perturbed ones go through all later blocks;
    d is the experiment's smallest drift above 0.
    """
    rho = max((x for name, x in errors.items() if name.endswith(".resid_post")), default=0.0)
    drifts = [x for name, x in case.expected.items() if is_drift(name, experiment)]
    least = min((float(x) for every in drifts for x in every if x > 0), default=inf)
    n = case.inputs["token_ids"].size * case.model.config.hidden_size
    return (2 / n) ** 0.5 * rho / least


def _divergence_error(case: Case, step: str, logits: float) -> float:
    """The error of divergences, as a share of the largest, KL, if logits err by so much.

    ``sqrt(2 KL) sqrt(2 / T) e / KL``: two logits are off by e each, and KL is half the variance of
    their difference, which is ``sqrt(2 KL)``; T tokens are off in either sign. In float64 the terms
    of a divergence are as large as logits, and little is left of them.
    """
    truth, largest = case.expected["logits"], case.expected[step].max(initial=0.0) or 1.0
    e = logits * float(np.sqrt(np.mean(np.square(truth))))
    by_logits = (2 / case.inputs["token_ids"].size) ** 0.5 * e * (2 / largest) ** 0.5
    return max(by_logits, EPS["float64"] * float(np.abs(truth).max()) / largest)


def _sample(case: Case, stepwise: bool, kind: type[FewerBits] | None) -> Mapping[str, float]:
    """Errors in units of the dtype, of float32 or of float32 with fewer bits; of counts none."""
    key = f"{way_of('float32', stepwise)}.{kind.fewer if kind else 0}"
    if key not in case.errors:
        unit = EPS["float32"] * (2.0**kind.fewer if kind else 1.0)
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
    """Errors by step; drifts, alignments, corrected allocations, perplexities have their largest.

    They are means of errors of either sign, which may be near 0 by chance. Coefficients, ratios of
    two drifts, have no less than drifts. A drift that should be 0, and what is divided by it, has
    no relative error, and none is counted.
    """
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


def step_tolerances(truth: Truth, dtype: str, actual: Mapping[str, Array]) -> Mapping[str, float]:
    """The largest error of every step by name; 0 for counts and bits.

    ``8 own + 64 eps``, and of a base how far it moves when the signals behind it do, of a corrected
    allocation also when the coefficients do: by half a unit of what they are written in, or by
    their tolerance where they are not written.
    """
    case, tolerances = truth.case, dict[str, float]()
    units = {name: EPS.get(x.dtype.name, 0.0) / 2 for name, x in actual.items()}
    inputs = replace(case_inputs(case, truth.given), values=dict(truth.steps))
    for name, right in case.expected.items():
        fed = not truth.is_chained(name)
        own = own_errors(case, dtype, fed)[name]
        tolerances[name] = tolerance_of(name, right, own, dtype, fed)
        if name.endswith((".base", ".corrected")) and not truth.stepwise:
            off = {x: units[x] if x in truth.given else tolerances[x] for x in tolerances}
            floor = tolerance_of(name, right, 0.0, dtype, fed)
            tolerances[name] = max(tolerances[name], _moved(inputs, name, off) + floor)
        if name in actual:
            tolerances[name] += writing_error(name, right, actual[name], dtype, fed)
    if "coarse.stderr" in tolerances:  # a difference of coefficients: off by as much as these
        ratio, stderr = (case.expected[f"coarse.{x}"] for x in ("absorption_coefficient", "stderr"))
        off_by = tolerances["coarse.absorption_coefficient"] * ratio.max()
        tolerances["coarse.stderr"] += off_by / (stderr.max() or 1.0)
    return {
        name: x + moved_by_rounding(case, name, dtype) if x else x for name, x in tolerances.items()
    }


def _moved(inputs: StepInputs, step: str, off: Mapping[str, float]) -> float:
    """How far a base moves with its signals; a corrected one also with what corrects it."""
    name, _, last = step.partition(".")
    by_noise = name in inputs.recipe.bases
    base, log = (name, clipped_log) if by_noise else (inputs.recipe.bases[0], centred_log)
    signal, moved = signal_of(base), 0.0
    sources = {"arrival": "pruned.0.drift", "divergence": "pruned.divergence"}
    source = sources.get(name, RATIO)
    errors = inputs.number(source) if by_noise else inputs.errors(name)

    def allocation(dense: Array, by: Array) -> Array:
        if last == "base":
            return inputs.allocated(name, dense).base_sparsity
        return inputs.corrected(base, dense, log(by))

    if signal in inputs.known:
        moved = moved_by(
            lambda x: allocation(inputs.base(base, {signal: x}), errors),
            inputs.number(signal),
            off[signal],
        )
    if last == "base":
        return moved
    dense = inputs.base(base, {})
    return moved + moved_by(lambda x: allocation(dense, x), errors, off[source])


def moved_by(function: Callable[[Array], Array], x: Array, relative: float) -> float:
    """How far a function of x, [L] or [L, ...], moves when each of x is `relative` off, t.

    ``max_k sum_i |f(x with x_i (1 + t)) - f(x)|_k / max |f(x)|``, the larger of that and
    1 / (1 + t); a t of more than 1 counts as 1.
    """
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
    """What is added to the tolerance of SparseGPT's steps behind block 0, else 0.

    Its new weights are rounded to the dtype of the file. Where that is coarser than the
    candidate's, one that lies between two numbers may become either, in a block that is shown or
    not, and what follows moves by units of the file's dtype.
    """
    if not step.startswith("sparsegpt") or ".blocks.0." in step:
        return 0.0
    names = {weight.stored.numpy_dtype.name for weight in case.model.weights.values()}
    unit = max((EPS[name] for name in names & EPS.keys()), default=0.0)
    return SPARSEGPT_FACTOR * FLOOR_16 * unit if unit > EPS[dtype] else 0.0
