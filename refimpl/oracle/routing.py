"""Which experts a candidate's tokens go to: its own choice near the router's edge, and its effects.

A token that lies between two experts may go to either, and everything after it follows from that.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from refimpl.model.experts import ROUTER, route
from refimpl.model.forward import project
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.judging.measures import FORWARD, Positions
from refimpl.oracle.judging.pruner_scores import Keep, unpacked
from refimpl.oracle.judging.ties import positions
from refimpl.oracle.judging.tolerance import EPS, ERROR_FACTOR, FLOOR_16
from refimpl.oracle.reference_errors import router_choices
from refimpl.oracle.steps import steps

GIVEN = (".score", ".base", ".corrected", ".counts", ".signal")  # step by step by the case's
NEAR = 0.25  # of the tolerance: twice refimpl's own error


def on_own_choices(case: Case, actual: Mapping[str, Array]) -> Mapping[str, Array]:
    """The trace points in float64 where the tokens go to the candidate's experts, not the case's.

    None where the choices are the same.
    """
    choices = router_choices(case, actual)
    if all(np.array_equal(x, case.expected[name]) for name, x in choices.items()):
        return {}
    patterns = tuple(x for x in case.expected if x.split(".")[0] in FORWARD)
    recipe, ids = replace(case.recipe, only=patterns), case.inputs["token_ids"]
    return steps(case.model, ids, recipe, choices=choices)


class _Router:
    """A router of a case, and how far each logit ``w x`` may be off, [N, S, E].

    ``t ||w|| ||x|| / sqrt(D) + 4 eps |w x|``: x is off by t of itself in a direction of its own; of
    D numbers with errors of either sign, the part along w is one in sqrt(D).
    """

    def __init__(self, case: Case, step: str, tolerances: Mapping[str, float], dtype: str) -> None:
        norm, index = step.replace(ROUTER, "mlp_norm"), int(step.split(".")[1])
        assert case.model.config.experts is not None
        self.experts, self.weights = case.model.config.experts, case.model.block(index, np.float64)
        x = case.expected[norm]
        self.logits, width = project(x, self.weights, "router"), x.shape[-1]
        w = np.linalg.norm(self.weights["router.weight"], axis=1)
        sizes = w * np.linalg.norm(x, axis=-1, keepdims=True)
        rounding = FLOOR_16 * EPS[dtype] * np.abs(self.logits)
        self.slack = tolerances[norm] / width**0.5 * sizes + rounding
        self.truth = unpacked(case.expected[step], self.experts.num_experts)

    def chosen(self, change: Array) -> Keep:
        """The experts that are chosen if the logits change by so much."""
        correction = self.weights.get("router.correction")
        chosen: Keep = route(self.logits + change, self.experts, correction)[0]
        return chosen

    def near(self) -> Array:
        """Tokens whose experts, or shares, a quarter of the tolerance may turn, [N, S]."""
        slack = NEAR * self.slack
        less = self.chosen(np.where(self.truth, -slack, slack))
        turns: Array = np.any(less != self.truth, axis=-1)
        if self.experts.scoring == "sparsemixer":
            best, other = (np.expand_dims(self.logits, axis) for axis in (-1, -2))
            limit = best - other - 2 * self.experts.jitter * np.maximum(np.abs(other), best)
            at = np.abs(limit) <= np.expand_dims(slack, -1) + np.expand_dims(slack, -2)
            turns |= np.any(at & np.expand_dims(self.truth, -1), axis=(-1, -2))
        return turns


def router_ties(
    case: Case, step: str, bits: Array, own: float, tolerances: Mapping[str, float], dtype: str
) -> Positions:
    """Tokens that go to other experts, if the router's rounding explains each of them.

    As many as refimpl turns itself, or as lie within a quarter of the tolerance, and two more.
    """
    router = _Router(case, step, tolerances, dtype)
    mine = unpacked(bits, router.experts.num_experts)
    turned = (mine != router.truth).any(axis=-1)
    explained = router.chosen(np.where(mine, 1, -1) * router.slack) == mine
    most = 2 + max(ERROR_FACTOR * own / 2, int(router.near().sum()))
    right = explained[turned].all() and turned.sum() <= most
    return positions(np.argwhere(turned)) if right else ()


def follows_a_choice(
    case: Case,
    step: str,
    actual: Mapping[str, Array],
    tolerances: Mapping[str, float],
    dtype: str,
    stepwise: bool,
) -> bool:
    """Whether a step follows from choices that the candidate did not write, and rounding may turn.

    These are the ones for perturbed states and pruned models, those of a forward without
    `router.keep`, and which experts a sparsemixer counts against each other.
    """
    names, experts = list(case.expected), case.model.config.experts
    routers = {name for name in names if name.endswith(ROUTER)}
    if experts is None or EPS[dtype] <= EPS["float32"]:
        return False
    if step.split(".")[0] in FORWARD:
        unwritten = set() if stepwise else routers - router_choices(case, actual).keys()
        unwritten = routers if experts.scoring == "sparsemixer" else unwritten
        if not unwritten.intersection(names[: names.index(step)]):
            return False
    elif stepwise and (step.endswith(GIVEN) or step.startswith("pruned.blocks.")):
        return False
    return any(_Router(case, name, tolerances, dtype).near().any() for name in routers)
