"""Which experts a candidate's tokens go to: between two near the router's edge, either is right."""

import numpy as np

from refimpl.model.experts import ROUTER, route
from refimpl.model.forward import project
from refimpl.model.ops import Array
from refimpl.oracle.judging.measures import FORWARD, Positions
from refimpl.oracle.judging.pruner_scores import Keep, unpacked
from refimpl.oracle.judging.ties import positions
from refimpl.oracle.judging.tolerance import EPS, ERROR_FACTOR, FLOOR_16, tolerance_of
from refimpl.oracle.own_inputs import Truth
from refimpl.oracle.reference_errors import own_errors

GIVEN = (".score", ".base", ".corrected", ".counts", ".signal")  # computed from written numbers
NEAR = 0.25  # of the tolerance: twice refimpl's own error


class _Router:
    """A router of a case, and how far each logit ``w x`` may be off, [N, S, E].

    ``t ||w|| ||x|| / sqrt(D) + 4 eps |w x|``: x is off by t of itself in a direction of its own; of
    D numbers with errors of either sign, the part along w is one in sqrt(D).
    """

    def __init__(self, truth: Truth, step: str, dtype: str, chained: bool) -> None:
        norm, index = step.replace(ROUTER, "mlp_norm"), int(step.split(".")[1])
        assert truth.case.model.config.experts is not None
        self.experts = truth.case.model.config.experts
        self.weights = truth.case.model.block(index, np.float64)
        x, own = truth.value(norm), own_errors(truth.case, dtype)[norm] if chained else 0.0
        self.logits, width = project(x, self.weights, "router"), x.shape[-1]
        w = np.linalg.norm(self.weights["router.weight"], axis=1)
        sizes = w * np.linalg.norm(x, axis=-1, keepdims=True)
        rounding = FLOOR_16 * EPS[dtype] * np.abs(self.logits)
        self.slack = tolerance_of(norm, x, own, dtype) / width**0.5 * sizes + rounding
        self.truth = unpacked(truth.steps[step], self.experts.num_experts)

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


def router_ties(truth: Truth, step: str, bits: Array, dtype: str) -> Positions:
    """Tokens that go to other experts, if the router's rounding explains each of them.

    As many as refimpl turns itself, or as lie within a quarter of the tolerance, and two more.
    """
    router = _Router(truth, step, dtype, truth.is_chained(step))
    mine = unpacked(bits, router.experts.num_experts)
    turned = (mine != router.truth).any(axis=-1)
    explained = router.chosen(np.where(mine, 1, -1) * router.slack) == mine
    own = own_errors(truth.case, dtype, not truth.is_chained(step))[step]
    most = 2 + max(ERROR_FACTOR * own / 2, int(router.near().sum()))
    right = explained[turned].all() and turned.sum() <= most
    return positions(np.argwhere(turned)) if right else ()


def follows_a_choice(truth: Truth, step: str, dtype: str) -> bool:
    """Whether a step follows from choices that the candidate did not write, and rounding may turn.

    These are the ones for perturbed states and pruned models, those of a forward without
    `router.keep`, and which experts a sparsemixer counts against each other.
    """
    names, experts = list(truth.case.expected), truth.case.model.config.experts
    routers = {name for name in names if name.endswith(ROUTER)}
    if experts is None or EPS[dtype] <= EPS["float32"]:
        return False
    if step.split(".")[0] in FORWARD:
        unwritten = routers if experts.scoring == "sparsemixer" else routers - truth.given.keys()
        if not unwritten.intersection(names[: names.index(step)]):
            return False
    elif step.endswith(GIVEN) or (truth.stepwise and step.startswith("pruned.blocks.")):
        return False
    return any(_Router(truth, name, dtype, True).near().any() for name in routers)
