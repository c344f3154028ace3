"""refimpl's own errors: how far the same computation is off in a candidate's dtype."""

import fnmatch
from collections.abc import Mapping
from functools import lru_cache
from math import inf, isfinite

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.case import FACTOR, Case, case_inputs, is_choice, require_steps
from refimpl.oracle.dense_steps import EXPERIMENTS, RATIO, coefficient_of
from refimpl.oracle.judging import measures
from refimpl.oracle.judging.measures import EPS, FLOOR_16, RESOLVABLE, error_of, judges_sparsegpt
from refimpl.oracle.judging.records import record_of
from refimpl.oracle.judging.ties import sparsegpt_error
from refimpl.oracle.rounding import ARITHMETIC, FEWER, RoundedArray, fewer_bits
from refimpl.oracle.steps import every_array

SAMPLES = (0, 8, 7)  # bits less than float32, in whose units they are


def own_errors(case: Case, dtype: str, stepwise: bool = False) -> Mapping[str, float]:
    """Refimpl's own errors in a dtype by step: those of the case's folder, or measured once."""
    if dtype not in EPS:
        raise RefimplError(
            f"dtype {dtype} is not supported", " or ".join(EPS), "choose one of these"
        )
    key = f"{'stepwise' if stepwise else 'chained'}.{dtype}"
    if key not in case.errors:
        case.errors[key] = _measured(case, dtype, stepwise)
    return case.errors[key]


def _measured(case: Case, dtype: str, stepwise: bool) -> Mapping[str, float]:
    """The largest error by step of several samples (docs/explanation/tolerances.md)."""
    arrays = _computed(case, dtype, stepwise, ARITHMETIC.get(dtype))
    require_steps(case, arrays)
    scale = 2.0**-FEWER if dtype == "float64" else 1.0
    kinds = {name: measures.arithmetic_of(name, dtype, stepwise) for name in case.expected}
    errors = {
        name: x * scale if kinds[name] == dtype else 0.0
        for name, x in pooled_errors(case.expected, arrays).items()
    }

    for sample in SAMPLES:
        for name, x in _sample(case, stepwise, sample).items():
            errors[name] = max(errors[name], x * EPS[kinds[name]])

    def raise_to(least: float, kind: str) -> None:
        for name in fnmatch.filter(errors, kind):
            errors[name] = max(errors[name], least)

    states, tokens = own_errors(case, dtype) if stepwise else errors, case.inputs["token_ids"].size
    rho = max((x for name, x in states.items() if name.endswith(".resid_post")), default=0.0)
    for experiment in EXPERIMENTS:
        drifts = [case.expected[x] for x in fnmatch.filter(errors, f"{experiment}*.drift")]
        least = min((float(x) for every in drifts for x in every if x > 0), default=inf)
        difference = (2 / (tokens * case.model.config.hidden_size)) ** 0.5 * rho / least
        raise_to(difference, f"{experiment}*.drift")
        raise_to(difference, coefficient_of(experiment))
        raise_to(2 * difference, f"{experiment}*.alignment")  # half the square of one
        raise_to(2 * difference, f"{experiment}divergence")  # the square of one, of logits
    if (step := "pruned.divergence") in errors:
        truth, largest = case.expected["logits"], case.expected[step].max(initial=0.0) or 1.0
        e = errors["logits"] * float(np.sqrt(np.mean(np.square(truth))))
        raise_to((2 / tokens) ** 0.5 * e * (2 / largest) ** 0.5, step)
        raise_to(EPS["float64"] * float(np.abs(truth).max()) / largest, step)
    worst = 0.0  # of SparseGPT's factors up to each block, as errors grow with depth
    for i in range(0 if case.recipe.only else case.model.config.num_blocks):
        for name, truth in _products(case).items() if judges_sparsegpt(dtype) else ():
            if f".blocks.{i}." in name:
                how = len(case.inputs["token_ids"]), case.recipe.damping
                worst = max(worst, sparsegpt_error(arrays[name], truth, *how))
        errors[f"{FACTOR}{i}"] = worst
    return errors


@lru_cache(maxsize=1)
def _products(case: Case) -> Mapping[str, Array]:
    """SparseGPT's products in float64, of the blocks that are not shown too."""
    every = every_array(case_inputs(case, case.expected))
    return {name: x for name, x in every.items() if name.endswith(".products")}


@lru_cache(maxsize=2 * len(SAMPLES))
def _sample(case: Case, stepwise: bool, fewer: int) -> Mapping[str, float]:
    """Errors of float32 with so many bits less in units of it; of counts none."""
    computed = _computed(case, "float32", stepwise, fewer_bits(fewer) if fewer else None)
    errors, unit = pooled_errors(case.expected, computed).items(), EPS["float32"] * 2.0**fewer
    return {k: x / unit for k, x in errors if record_of(k).measure in RESOLVABLE and isfinite(x)}


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
        if step.endswith((".drift", RATIO)):
            undefined = value == 0 if step.endswith(".drift") else np.isnan(value)
            found = np.where(undefined, value, found)
        elif record_of(step).measure == "lost":
            found = np.where(measures.lost(value) <= measures.UNCHANGED, value, found)
        errors[step] = error_of(step, found, value)[0]
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
    return measures.SPARSEGPT_FACTOR * FLOOR_16 * unit if unit > EPS[dtype] else 0.0
