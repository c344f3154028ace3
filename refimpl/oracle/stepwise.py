"""Each step from the case's own values, so that an error at one is not carried to the next.

A candidate that is fed these values makes no choice that a later step depends on. The values that
each step is computed from are in docs/how-to/check.md.
"""

import numpy as np
import numpy.typing as npt

from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.rounding import RoundedArray, RoundedModel
from refimpl.oracle.steps import every_array
from refimpl.oracle.table.inputs import StepInputs


def case_inputs(
    case: Case, dtype: npt.DTypeLike = np.float64, rounded: type[RoundedArray] | None = None
) -> StepInputs:
    """The values of a case, as a computation in some dtype reads them."""
    model = case.model if rounded is None else RoundedModel.of(case.model, rounded)
    dtype = dtype if rounded is None else rounded.held
    choices = {x: value for x, value in case.expected.items() if x.endswith(ROUTER)}
    ids, given = case.inputs["token_ids"], case.expected
    return StepInputs(model, case.recipe, ids, dtype, given, case.inputs, rounded, choices)


def stepwise_steps(
    case: Case, dtype: npt.DTypeLike = np.float64, rounded: type[RoundedArray] | None = None
) -> dict[str, Array]:
    """Compute every step of a case from the case's own values, as docs/how-to/check.md says.

    Arrays are by name as of `steps`, with scores and products of all blocks; numbers are `rounded`
    in place of the dtype, if that is not None.
    """
    arrays = every_array(case_inputs(case, dtype, rounded))
    return {name: np.asarray(value) for name, value in arrays.items()}
