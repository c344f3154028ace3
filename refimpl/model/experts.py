"""A mixture of experts: its facts, which experts each token goes to, and how much each counts.

Shape letters: B batch, S sequence, E experts, G groups of experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from refimpl.model import ops
from refimpl.model.kernels import Kernels
from refimpl.model.ops import Array

ROUTER = "router.keep"  # the trace point of a router's choice
Observer = Callable[[str, Array], Array]


@dataclass(frozen=True)
class Experts:
    """A mixture of experts in place of the MLP."""

    num_experts: int  # E
    top_k: int  # Experts per token
    intermediate_size: int  # Channels inside an expert
    # Channels inside the shared expert, which every token passes; 0 without one
    shared_size: int = 0
    # How the router turns its logits into scores, see `experts.route`
    scoring: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    # Whether the shares of a token's experts sum to 1, before scaling
    normalised: bool = True
    least_sum: float = 0.0  # Smallest sum that shares are divided by
    sum_eps: float = 0.0  # Added to the sum that shares are divided by
    scaling: float = 1.0  # Multiplies the shares
    groups: int = 1  # Groups of experts, of equal size
    top_groups: int = 1  # Groups that a token may choose from
    # How many of a group's largest preferences it is ranked by, as a sum
    group_by: int = 2
    # sparsemixer: half the relative distance of logits that count as near
    jitter: float = 0.0
    of_inputs: bool = False  # Whether shares multiply an expert's input, not its output


def unobserved(name: str, value: Array) -> Array:
    """Pass a trace point on unchanged."""
    return value


def inputs_of_experts(
    x: Array,
    weights: Mapping[str, Array],
    kernels: Kernels,
    eps: float,
    observe: Observer,
) -> tuple[Array, Array]:
    """The inputs of experts and of their router: x, unless an MLP is beside them.

    Then experts read the norm of x, and the router x divided by its length, times a learned factor
    of each channel.

    Observed: `experts_norm` and `router_norm` [B, S, D], beside an MLP.
    """
    if "router.scale" not in weights:
        return x, x
    own = observe(
        "experts_norm", kernels.rms_norm(x, weights["experts_norm.weight"], eps)
    )
    gain = weights["router.scale"] * x.shape[-1] ** -0.5
    return own, observe("router_norm", kernels.rms_norm(x, gain, eps))


def largest(x: Array, count: int) -> Array:
    """Which numbers of the last axis are the `count` largest, [..., E]; ties: the lower index.

    At least so many of each row are not -inf.

    Example:
        >>> largest(np.array([3.0, 5.0, 5.0, 5.0]), 2).tolist()
        [False, True, True, False]
    """
    chosen = ~np.ones_like(x, np.bool_)
    for _ in range(count):
        best = np.argmax(np.where(chosen, -np.inf, x), axis=-1)
        chosen = chosen | (np.expand_dims(best, -1) == np.arange(x.shape[-1]))
    return chosen


def preferences(
    logits: Array, experts: Experts, correction: Array | None
) -> tuple[Array, Array]:
    """Numbers that choose experts, -inf in groups that take no part, and scores; [B, S, E]."""
    if experts.scoring == "sparsemixer":
        return logits, logits
    score = ops.softmax(logits) if experts.scoring == "softmax" else ops.sigmoid(logits)
    preference = score if correction is None else score + correction
    if experts.groups > 1:
        shape = (
            *score.shape[:-1],
            experts.groups,
            experts.num_experts // experts.groups,
        )
        grouped = np.reshape(preference, shape)
        of_group = np.sum(
            np.where(largest(grouped, experts.group_by), grouped, 0.0), axis=-1
        )
        chosen = np.expand_dims(largest(of_group, experts.top_groups), -1)
        preference = np.reshape(np.where(chosen, grouped, -np.inf), score.shape)
    return preference, score


def route(
    logits: Array,
    experts: Experts,
    weights: Mapping[str, Array] = MappingProxyType({}),
    observe: Observer = unobserved,
) -> tuple[Array, Array]:
    """Choose experts for every token, and weigh them.

    score = softmax(logits) or sigmoid(logits);  chosen = the k largest of score + correction;
    share = scaling * score / sum of the chosen scores, without the division if not `normalised`

    In some models, each expert has a factor of its own, `router.expert_scale`.

    With groups, only the `top_groups` groups take part whose two largest sums are the largest.

    Args:
        logits: The router's output, [B, S, E].
        experts: The mixture's facts.
        weights: Any `router.correction`, added to the scores for the choice alone, and any
            `router.expert_scale`, both [E].
        observe: Receives which experts are chosen as `router.keep`, and may return other ones.

    Returns:
        Which experts are chosen, and the share of each, 0 for all others; both [B, S, E].

    Source: Shazeer et al., arXiv:1701.06538; groups and correction: DeepSeek-V3, arXiv:2412.19437.

    Differs: transformers leaves open which of equal scores is chosen; here the lower index is.

    Example:
        >>> two_of_three = Experts(num_experts=3, top_k=2, intermediate_size=4)
        >>> chosen, share = route(np.log([[[1.0, 2.0, 6.0]]]), two_of_three)
        >>> chosen.tolist(), share.round(2).tolist()
        ([[[False, True, True]]], [[[0.0, 0.25, 0.75]]])
    """
    preference, score = preferences(logits, experts, weights.get("router.correction"))
    chosen = observe(ROUTER, largest(preference, experts.top_k))
    if experts.scoring == "sparsemixer":
        return chosen, sparsemixer(logits, chosen, experts.top_k, experts.jitter)
    share = np.where(chosen, score, 0.0)
    if experts.normalised:
        total = np.sum(share, axis=-1, keepdims=True)
        share = share / (np.maximum(total, experts.least_sum) + experts.sum_eps)
    share, own = share * experts.scaling, weights.get("router.expert_scale")
    return chosen, share if own is None else share * own


def sparsemixer(logits: Array, chosen: Array, top_k: int, jitter: float) -> Array:
    """Weigh chosen experts one after another, against those with nearly as large a logit.

    share = 1 / sum exp(z_e - z_best) over the experts e not chosen before with
    z_best - z_e <= 2 jitter max(|z_e|, z_best), for the logits z; all arrays are [B, S, E]

    Source: Liu et al., arXiv:2409.12136, as Phi-3.5-MoE computes it outside training.

    Example:
        >>> chosen = np.array([[[True, True, False]]])
        >>> sparsemixer(np.array([[[2.0, 2.0, -1.0]]]), chosen, 2, 0.1).tolist()
        [[[0.5, 1.0, 0.0]]]
    """
    weighed, share = ~np.ones_like(logits, np.bool_), np.zeros_like(logits)
    for _ in range(top_k):
        left = np.where(weighed, -np.inf, logits)
        next_of_chosen = np.where(chosen, left, -np.inf)
        best = np.max(next_of_chosen, axis=-1, keepdims=True)
        far = best - logits > 2 * jitter * np.maximum(np.abs(logits), best)
        at = largest(next_of_chosen, 1)
        share = np.where(at, ops.softmax(np.where(far, -np.inf, left)), share)
        weighed = weighed | at
    return share
