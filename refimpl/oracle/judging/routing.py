"""Which experts a candidate's tokens go to: its own choice near the router's edge, and its effects.

A token that lies between two experts may go to either, and everything after it follows from that.
"""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

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

GIVEN = ("score", "base", "corrected", "counts", "signal")  # step by step from numbers of the case
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


def router_ties(
    case: Case, step: str, bits: Array, own: float, tolerances: Mapping[str, float], dtype: str
) -> Positions:
    """Tokens that go to other experts, if the router's rounding explains each of them.

    As many as refimpl turns itself, or as lie within a quarter of the tolerance, and two more.
    """
    block = step.removesuffix(f".{ROUTER}")
    slack = _slack(case, block, tolerances, dtype)
    mine, truth = (unpacked(x, slack.shape[-1]) for x in (bits, case.expected[step]))
    turned = (mine != truth).any(axis=-1)
    explained = (_chosen(case, block, np.where(mine, slack, -slack)) == mine).all(axis=-1)
    most = 2 + max(ERROR_FACTOR * own / 2, int(_near(case, block, truth, slack).sum()))
    if not explained[turned].all() or turned.sum() > most:
        return ()
    return positions(np.argwhere(turned))


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
    experts = case.model.config.experts
    routers = [name for name in case.expected if name.endswith(ROUTER)]
    if not routers or experts is None or EPS[dtype] <= EPS["float32"]:
        return False
    first, last = step.split(".")[0], step.rpartition(".")[2]
    if first in FORWARD:
        before = [*case.expected][: [*case.expected].index(step)]
        written = {*routers} if stepwise else {*router_choices(case, actual)}
        if not {*routers} & {*before} - (set() if experts.scoring == "sparsemixer" else written):
            return False
    elif stepwise and (last in GIVEN or fnmatchcase(step, "pruned.blocks.*")):
        return False
    for name in routers:
        block = name.removesuffix(f".{ROUTER}")
        slack = _slack(case, block, tolerances, dtype)
        if _near(case, block, unpacked(case.expected[name], slack.shape[-1]), slack).any():
            return True
    return False


def _logits(case: Case, block: str) -> Array:
    """The router's logits, [N, S, E]."""
    weights = case.model.block(int(block.split(".")[1]), np.float64)
    return project(case.expected[f"{block}.mlp_norm"], weights, "router")


def _chosen(case: Case, block: str, change: Array) -> Keep:
    """The experts that the router chooses if its logits change by so much."""
    weights, experts = (
        case.model.block(int(block.split(".")[1]), np.float64),
        case.model.config.experts,
    )
    assert experts is not None
    logits = _logits(case, block) + change
    chosen: Keep = route(logits, experts, weights.get("router.correction"))[0]
    return chosen


def _near(case: Case, block: str, truth: Keep, slack: Array) -> Array:
    """Tokens whose experts, or shares, a quarter of the tolerance may turn, [N, S]."""
    less, experts = (
        _chosen(case, block, NEAR * np.where(truth, -slack, slack)),
        case.model.config.experts,
    )
    near: Array = np.any(less != truth, axis=-1)
    if experts is not None and experts.scoring == "sparsemixer":
        best, other = (np.expand_dims(_logits(case, block), axis) for axis in (-1, -2))
        limit = best - other - 2 * experts.jitter * np.maximum(np.abs(other), best)
        both = np.expand_dims(slack, -1) + np.expand_dims(slack, -2)
        turns = (np.abs(limit) <= NEAR * both) & np.expand_dims(truth, -1)
        near |= np.any(turns, axis=(-1, -2))
    return near


def _slack(case: Case, block: str, tolerances: Mapping[str, float], dtype: str) -> Array:
    """How far each logit ``w x`` may be off, [N, S, E]: ``t ||w|| ||x|| / sqrt(D) + 4 eps |w x|``.

    x is off by t of itself in a direction of its own: of D numbers with errors of either sign, the
    part along w is one in sqrt(D).
    """
    x, weights = (
        case.expected[f"{block}.mlp_norm"],
        case.model.block(int(block.split(".")[1]), np.float64),
    )
    sizes = np.linalg.norm(weights["router.weight"], axis=1) * np.linalg.norm(
        x, axis=-1, keepdims=True
    )
    share = tolerances[f"{block}.mlp_norm"] / x.shape[-1] ** 0.5
    return share * sizes + FLOOR_16 * EPS[dtype] * np.abs(_logits(case, block))
