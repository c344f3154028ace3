"""What refimpl itself computes in a dtype, and how far that is off: what tolerances are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.judging.measures import measure_of
from refimpl.oracle.judging.tolerance import UNITS, own_errors
from refimpl.oracle.rounding import (
    KINDS,
    Float32InLarge,
    Float32Larger,
    InLarge,
    Rounded,
    rounded_steps,
)
from refimpl.oracle.steps import steps
from refimpl.oracle.stepwise import rounded_stepwise_steps, stepwise_steps

PRUNERS = ("wanda", "sparsegpt", "pattern")


@dataclass(frozen=True)
class Own:
    """What refimpl itself computes in a dtype.

    Args:
        found: Every step, those of all blocks among them.
        errors: How far the case's steps are off; of bits and counts, how many.
        stepwise: Whether from the case's own values at each step.
    """

    found: Mapping[str, Array]
    errors: Mapping[str, float]
    stepwise: bool = False


@lru_cache(maxsize=8)
def own_of(case: Case, dtype: str, stepwise: bool = False) -> Own:
    """Compute a case in a dtype.

    What a dtype costs is taken from several sides, the largest counts: computed in it; and what
    float32, and float32 with eight and with seven bits less, cost in their units. A step that ends
    in few numbers is a sum of errors of either sign, which may be near zero by chance; and where
    errors grow along one direction, as in a sharp softmax, one number stands for all of them.

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
    kind = KINDS.get(dtype)
    found = _computed(case, dtype, stepwise, kind)
    seen = 2.0**-kind.less if kind and issubclass(kind, InLarge) else 1.0
    errors = {name: x * seen for name, x in pooled_errors(case.expected, found).items()}
    for sample in (None, Float32InLarge, Float32Larger):
        if dtype == "float32" and sample is None:
            continue  # that is what was found
        for name, x in _sample(case, stepwise, sample).items():
            errors[name] = max(errors[name], x * UNITS[dtype])
    apart = _unresolved(case, errors, stepwise)
    for name in errors:
        if name.endswith(".drift") or name == "absorption_coefficient":
            errors[name] = max(errors[name], apart)
    return Own(found, errors, stepwise)


def _unresolved(case: Case, errors: Mapping[str, float], stepwise: bool) -> float:
    """What rounding of two states costs their difference: ``sqrt(2) rho / (d sqrt(n))``.

    Each is off by rho of itself, in a direction of its own, and they lie d apart. Of n numbers with
    errors of either sign, the part along the difference is one in sqrt(n). Step by step rho is what
    all blocks cost together, as each is fed its state; of pushes the smallest is taken.
    """
    states = [x for name, x in errors.items() if name.endswith(".resid_post")]
    rho = sum(states) if stepwise else max(states)
    least = min(x.min() for name, x in case.expected.items() if name.endswith(".drift"))
    n = case.expected["blocks.0.resid_post"].size
    return (2 / n) ** 0.5 * rho / float(least) if least else 0.0


@lru_cache(maxsize=12)
def _sample(case: Case, stepwise: bool, kind: type[InLarge] | None) -> dict[str, float]:
    """Errors in units of the dtype, of float32 or of float32 seen in large.

    Run from the tokens up to the pruners, whose choices turn; of counts and decisions none.
    """
    unit = UNITS["float32"] * (2.0**kind.less if kind else 1.0)
    errors = pooled_errors(case.expected, _computed(case, "float32", stepwise, kind))
    return {
        name: x / unit
        for name, x in errors.items()
        if measure_of(name, case.expected[name].dtype) in ("rows", "numbers")
        and isfinite(x)
        and (stepwise or name.split(".")[0] not in PRUNERS)
    }


def _computed(
    case: Case, dtype: str, stepwise: bool, kind: type[Rounded] | None
) -> Mapping[str, Array]:
    """Every step, in a dtype that NumPy has or rounded further."""
    every = replace(case.recipe, shown=tuple(range(case.model.config.num_blocks)))
    ids = case.inputs["token_ids"]
    try:
        if stepwise:
            return rounded_stepwise_steps(case, kind) if kind else stepwise_steps(case, dtype)
        if kind:
            return rounded_steps(case.model, ids, every, kind)
        return steps(case.model, ids, every, dtype)
    except RefimplError as error:
        raise RefimplError(
            f"{case.folder}: cannot be computed in {dtype} ({error.problem})",
            "a case whose numbers are within the range of the dtype",
            "compare in another dtype",
        ) from error


def pooled_errors(truth: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, float]:
    """How far refimpl itself is off step by step, steps that end in few numbers of a kind together.

    Such numbers are means of errors of either sign, which may be near 0 by chance.

    Args:
        truth: Every step in float64.
        own: Every step in the other dtype.

    Returns:
        Errors by name, as `own_errors` measures them; drifts all have the largest of them, and so
        have alignments, corrected allocations and perplexities; coefficients, ratios of two drifts,
        have no less than drifts.
    """
    errors = own_errors(truth, own)
    for kind in (".drift", ".alignment", ".corrected", ".perplexity"):
        alike = [x for x in errors if x.endswith(kind) and isfinite(errors[x])]
        errors |= dict.fromkeys(alike, max((errors[x] for x in alike), default=0.0))
    ratio = "absorption_coefficient"
    errors[ratio] = max(errors[ratio], errors["perturbed.0.drift"])
    return errors
