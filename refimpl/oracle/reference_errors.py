"""refimpl's own errors in a dtype, and the tolerance of every step of a case that is made of them.

A base is a steep function of signals that lie close together, and a corrected allocation one of
coefficients. A candidate whose signals are within their tolerance must not fail for that.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import inf, isfinite

import numpy as np

from refimpl.errors import RefimplError
from refimpl.method.correction import centred_log, clipped_log
from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, case_inputs, once_per_case
from refimpl.oracle.case_folders import NEXT
from refimpl.oracle.dense_steps import StepInputs
from refimpl.oracle.judging.measures import (
    ALIGNMENT,
    RESOLVABLE,
    UNCHANGED,
    error_of,
    lost,
    measure_of,
)
from refimpl.oracle.judging.pruner_scores import unpacked
from refimpl.oracle.judging.tolerance import (
    EPS,
    FLOOR_16,
    SPARSEGPT_FACTOR,
    arithmetic_of,
    tolerance_of,
)
from refimpl.oracle.recipe import signal_of
from refimpl.oracle.rounding import (
    ARITHMETIC,
    FewerBits,
    Float32MinusEight,
    Float32MinusSeven,
    Float64MinusEight,
    RoundedArray,
)
from refimpl.oracle.steps import DECIDING, TABLE, StepTable, every_array

EXPERIMENTS = ("perturbed.", "coarse.", "pruned.")


@dataclass(frozen=True)
class ReferenceRun:
    """refimpl's own computation of a case in a dtype.

    Args:
        steps: Every step, those of all blocks among them.
        errors: Errors of the case's steps; of bits and counts, how many differ.
    """

    steps: Mapping[str, Array]
    errors: Mapping[str, float]


@once_per_case
def reference_run(
    case: Case, dtype: str, stepwise: bool = False, table: StepTable = TABLE
) -> ReferenceRun:
    """Compute a case in a dtype, from the tokens or each step from the case's own values.

    A part of the table computes its first steps, whose errors do not depend on what follows.

    An error is the largest of several samples: computed in the dtype; and in float32, and in
    float32 with eight and with seven bits fewer, in their units. A step that ends in few numbers is
    a sum of errors of either sign, which may be near zero by chance; and where errors grow along
    one direction, as in a sharp softmax, one number stands for all of them.
    """
    if dtype not in EPS:
        raise RefimplError(
            f"dtype {dtype} is not supported", " or ".join(EPS), "choose one of these"
        )
    kind = ARITHMETIC.get(dtype)
    arrays = _computed(case, dtype, stepwise, kind, table)
    expected = {step: x for step, x in case.expected.items() if table == TABLE or step in arrays}
    if unknown := [step for step in expected if step not in arrays]:
        raise RefimplError(
            f"{case.folder}: its recipe does not compute the step {unknown[0]}",
            "the steps of the recipe in case.json",
            NEXT,
        )
    scale = 2.0**-Float64MinusEight.fewer if dtype == "float64" else 1.0
    errors = {
        name: x * scale if arithmetic_of(name, dtype, stepwise) == dtype else 0.0
        for name, x in pooled_errors(expected, arrays).items()
    }
    for sample in (None, Float32MinusEight, Float32MinusSeven):
        if dtype == "float32" and sample is None:
            continue  # these are the errors already
        for name, x in _sample(case, stepwise, sample, table).items():
            errors[name] = max(errors[name], x * EPS[arithmetic_of(name, dtype, stepwise)])
    for experiment in EXPERIMENTS:
        difference = _difference_error(case, errors, stepwise, experiment)
        for name in errors:
            if is_drift(name, experiment) or name == coefficient_of(experiment):
                errors[name] = max(errors[name], difference)
            elif name.startswith(experiment) and name.endswith(ALIGNMENT):
                errors[name] = max(errors[name], 2 * difference)  # half the square of one
            elif name == f"{experiment}divergence":  # the square of a difference, of logits
                errors[name] = max(
                    errors[name], 2 * difference, _divergence_error(case, name, errors["logits"])
                )
    return ReferenceRun(arrays, errors)


def is_drift(name: str, experiment: str) -> bool:
    """Whether a step is a drift of one of the `EXPERIMENTS`."""
    return name.startswith(experiment) and name.endswith(".drift")


def coefficient_of(experiment: str) -> str:
    """The coefficients of one of the `EXPERIMENTS`."""
    return experiment.replace("perturbed.", "") + "absorption_coefficient"


def _difference_error(
    case: Case, errors: Mapping[str, float], stepwise: bool, experiment: str
) -> float:
    """The error of the difference of two rounded states: ``sqrt(2) rho / (d sqrt(n))``.

    Each is off by rho of itself, in a direction of its own, and they lie d apart. Of n numbers with
    errors of either sign, the part along the difference is one in sqrt(n). Step by step rho is the
    sum over all blocks, as each is fed its state; d is the experiment's smallest drift above 0.
    """
    states = [x for name, x in errors.items() if name.endswith(".resid_post")]
    rho = sum(states) if stepwise else max(states, default=0.0)
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


@once_per_case
def _sample(
    case: Case, stepwise: bool, kind: type[FewerBits] | None, table: StepTable
) -> dict[str, float]:
    """Errors in units of the dtype, of float32 or of float32 with fewer bits.

    From the tokens only up to the pruners, whose choices turn; of counts and decisions none.
    """
    unit = EPS["float32"] * (2.0**kind.fewer if kind else 1.0)
    table = table if stepwise else tuple(x for x in table if x not in DECIDING)
    arrays = _computed(case, "float32", stepwise, kind, table)
    errors = pooled_errors({k: x for k, x in case.expected.items() if k in arrays}, arrays)
    return {
        name: x / unit
        for name, x in errors.items()
        if measure_of(name, case.expected[name].dtype) in RESOLVABLE and isfinite(x)
    }


def router_choices(case: Case, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Choices of routers among some arrays, as many experts for each token as the case's."""
    experts, known = case.model.config.experts, case.expected
    found = {x: arrays[x] for x in known if x.endswith(ROUTER) and x in arrays}
    return {
        name: x
        for name, x in found.items()
        if x.shape == known[name].shape
        and x.dtype == np.uint8
        and experts is not None
        and (unpacked(x, experts.num_experts).sum(-1) == experts.top_k).all()
    }


def _computed(
    case: Case, dtype: str, stepwise: bool, kind: type[RoundedArray] | None, table: StepTable
) -> Mapping[str, Array]:
    """What a table computes in a dtype that NumPy has, or rounded further."""
    try:
        inputs = case_inputs(case, dtype, kind)
        inputs = inputs if stepwise else replace(inputs, given=None)
        return {name: np.asarray(x) for name, x in every_array(inputs, table).items()}
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
        elif step.endswith(ALIGNMENT):
            found = np.where(lost(value) <= UNCHANGED, value, found)
        errors[step] = error_of(step, found, value, measure_of(step, value.dtype))[0]
    kinds = [(x, y) for x in EXPERIMENTS for y in (".drift", ".alignment")]
    for start, end in (*kinds, ("", ".corrected")):
        alike = [x for x in errors if x.startswith(start) and x.endswith(end)]
        alike = [x for x in alike if isfinite(errors[x])]
        errors |= dict.fromkeys(alike, max((errors[x] for x in alike), default=0.0))
    turned = {x.split(".")[0] for x in errors if x.endswith(".keep") and errors[x]}
    perplexities = [x for x in errors if x.endswith(".perplexity") and isfinite(errors[x])]
    least = [errors[x] for x in perplexities if x.split(".")[0] not in turned]
    errors |= {x: max(errors[x], *least) for x in perplexities}
    for experiment in EXPERIMENTS:
        ratio = coefficient_of(experiment)
        if ratio in errors:
            errors[ratio] = max(errors[ratio], errors[f"{experiment}0.drift"])
    return errors


@once_per_case
def step_tolerances(
    case: Case, dtype: str, stepwise: bool = False, table: StepTable = TABLE
) -> Mapping[str, float]:
    """The largest error of every step by name; 0 for counts and bits.

    ``max(8 own + 64 eps, moved + 64 eps)``: `moved` is how far a base moves when the signals
    behind it do, and a corrected allocation when its base and the coefficients do, by as much as
    they may be off. Step by step nothing moves: each is fed the case's numbers.
    """
    tolerances = {
        name: tolerance_of(name, case.expected[name], error, dtype, stepwise)
        for name, error in reference_run(case, dtype, stepwise, table).errors.items()
    }
    if not stepwise:
        inputs = case_inputs(case)
        for step in [x for x in tolerances if x.endswith((".base", ".corrected"))]:
            floor = tolerance_of(step, case.expected[step], 0.0, dtype)
            tolerances[step] = max(tolerances[step], _moved(inputs, step, tolerances) + floor)
    if "coarse.stderr" in tolerances:  # a difference of coefficients: off by as much as these
        ratio, stderr = (case.expected[f"coarse.{x}"] for x in ("absorption_coefficient", "stderr"))
        off = tolerances["coarse.absorption_coefficient"] * ratio.max()
        tolerances["coarse.stderr"] += off / (stderr.max() or 1.0)
    return {
        name: x + moved_by_rounding(case, name, dtype) if x else x for name, x in tolerances.items()
    }


def _moved(inputs: StepInputs, step: str, tolerances: Mapping[str, float]) -> float:
    """How far a base moves with its signals; a corrected one with its base and what corrects it."""
    name, _, last = step.partition(".")
    if last == "base":
        signal = signal_of(name)
        if signal not in inputs.signals:
            return 0.0
        return moved_by(
            lambda x: inputs.allocated(name, inputs.base(name, {signal: x})).base_sparsity,
            inputs.signals[signal],
            tolerances[signal],
        )
    by_noise = name in inputs.recipe.bases
    base, log = (name, clipped_log) if by_noise else (inputs.recipe.bases[0], centred_log)
    sources = {"arrival": "pruned.0.drift", "divergence": "pruned.divergence"}
    source = sources.get(name, "absorption_coefficient")
    dense = inputs.base(base, {})
    errors = inputs.number(source) if by_noise else inputs.errors(name)
    by_base = moved_by(
        lambda x: inputs.corrected(base, x, log(errors)), dense, tolerances[f"{base}.base"]
    )
    return by_base + moved_by(
        lambda x: inputs.corrected(base, dense, log(x)), errors, tolerances[source]
    )


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
