"""What refimpl itself computes in a dtype, and how far that is off: what tolerances are made of."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.rounding import LESS, rounded_steps
from refimpl.oracle.steps import steps
from refimpl.oracle.stepwise import rounded_stepwise_steps, stepwise_steps
from refimpl.oracle.tolerance import UNITS, own_errors

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

    What float64 costs is taken from two sides, the larger counts: in large, as `rounded_steps` has
    it, and as float32 costs in small, by their units. float32 itself is seen in large, too, up to
    the pruners: errors add up, and one sum of them may be near zero by chance.

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
    errors = pooled_errors(case.expected, found)
    if single and not stepwise:  # a second sample, up to the pruners, whose choices it turns
        large = pooled_errors(case.expected, rounded_steps(case.model, ids, every, dtype))
        for name, x in large.items():
            if name.split(".")[0] not in PRUNERS and not name.endswith(".counts"):
                errors[name] = max(errors[name], x * 2.0**-LESS)
    if dtype == "float64":
        rough, small = own_of(case, "float32", stepwise).errors, UNITS["float64"] / UNITS["float32"]
        errors = {name: max(x * 2.0**-LESS, rough[name] * small) for name, x in errors.items()}
    return Own(found, errors, stepwise)


def pooled_errors(truth: Mapping[str, Array], own: Mapping[str, Array]) -> dict[str, float]:
    """How far refimpl itself is off step by step; all pushes of the experiment are one sample.

    A push ends in few numbers, means of errors of either sign, which may be near 0 by chance.

    Args:
        truth: Every step in float64.
        own: Every step in the other dtype.

    Returns:
        Errors by name, as `own_errors` measures them; drifts all have the largest of them, and so
        have alignments; coefficients, ratios of two drifts, have no less than drifts.
    """
    errors = own_errors(truth, own)
    for kind in ("drift", "alignment"):
        pushes = [x for x in errors if x.startswith("perturbed.") and x.endswith(kind)]
        errors |= dict.fromkeys(pushes, max(errors[x] for x in pushes))
    ratio = "absorption_coefficient"
    errors[ratio] = max(errors[ratio], errors["perturbed.0.drift"])
    return errors
