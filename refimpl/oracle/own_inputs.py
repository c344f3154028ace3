"""What every step should be: computed in float64 from what a candidate wrote for earlier steps."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.experts import ROUTER
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, case_inputs, entries, is_choice, require_steps
from refimpl.oracle.dense_steps import RATIO, StepInputs, by_noise
from refimpl.oracle.judging.measures import error_of
from refimpl.oracle.judging.ties import unpacked
from refimpl.oracle.steps import TABLE, every_array

EXPERIMENTS = ("perturbed.", "coarse.", "pruned.")  # beginnings, of drifts and what is made of them
ENDS = (".drift", ".alignment", RATIO, ".stderr", ".divergence")


@dataclass(frozen=True, eq=False)
class Truth:
    """What every step should be for one candidate, of blocks that are not shown, too.

    `missing` are the steps that each is computed from, and that are not `given`.
    """

    case: Case
    steps: Mapping[str, Array]
    given: Mapping[str, Array]
    missing: Mapping[str, frozenset[str]]
    stepwise: bool

    def value(self, step: str) -> Array:
        """A step as later ones read it."""
        return self.given.get(step, self.steps[step])

    @cached_property
    def inputs(self) -> StepInputs:
        """The values that a step of the candidate is computed from."""
        return replace(case_inputs(self.case, self.given), values=dict(self.steps))

    def is_chained(self, step: str) -> bool:
        """Whether errors of earlier steps are part of it, as these, or states, were not written."""
        alone = bool(self.case.recipe.sample_tokens) or is_experiment(step)
        return not self.stepwise and (alone or bool(self.missing[step] & self.case.expected.keys()))


def is_experiment(step: str) -> bool:
    """Whether a step is a drift, an alignment, a divergence, or made of them."""
    return step.endswith(ENDS) and (step.startswith(EXPERIMENTS) or step == RATIO)


def truth_of(
    case: Case, actual: Mapping[str, Array], stepwise: bool, chained: bool = False
) -> Truth:
    """Compute every step from what a candidate wrote, and from the tokens what it did not write.

    All from the tokens, if its numbers are beyond any range; for a case of some tokens its own.
    """
    if case.recipe.sample_tokens:
        right = {k: case.sampled(x) for k, x in case.expected.items()}
        return Truth(case, right, {}, dict.fromkeys(right, frozenset()), stepwise)
    given = {k: x for k, x in usable(case, actual).items() if not chained or is_choice(k)}
    if stepwise:
        given |= entries(case)
    choices = {x: y for x, y in given.items() if x.endswith(ROUTER)}
    turned = any(not np.array_equal(x, case.expected[name]) for name, x in choices.items())
    try:
        clean = {} if stepwise else dict(case.expected)
        if turned and not stepwise:  # experiments begin with states of the candidate's experts
            clean |= every_array(case_inputs(case, choices), TABLE[:1])
        inputs, table = replace(case_inputs(case, given), clean=clean), TABLE
        if not (turned or stepwise):  # the experiments by noise are those of the case
            inputs.values.update(x for x in case.expected.items() if is_experiment(x[0]))
            table = tuple(x for x in TABLE if x is not by_noise)
        arrays = {k: np.asarray(x) for k, x in every_array(inputs, table).items()}
    except (RefimplError, np.linalg.LinAlgError):
        if not actual:
            raise
        return truth_of(case, {}, stepwise)
    kept = {x: y for x, y in case.expected.items() if x not in arrays and is_experiment(x)}
    require_steps(case, kept | arrays)
    missing = dict.fromkeys(kept, frozenset[str]()) | inputs.missing
    return Truth(case, kept | arrays, given, missing, stepwise)


def usable(case: Case, actual: Mapping[str, Array]) -> dict[str, Array]:
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
