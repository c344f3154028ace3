"""Routing in a mixture of experts: which experts each token goes to, and how much each counts.

Shape letters: B batch, S sequence, E experts, G groups of experts.
"""

import numpy as np

from refimpl.model import ops
from refimpl.model.config import Experts
from refimpl.model.ops import Array


def largest(x: Array, count: int) -> Array:
    """Which numbers of the last axis are the `count` largest; ties go to the lower index.

    Args:
        x: Numbers, [..., E]; at least `count` of each row are not -inf.
        count: How many.

    Returns:
        True for those, [..., E].

    Example:
        >>> largest(np.array([3.0, 5.0, 5.0, 5.0]), 2).tolist()
        [False, True, True, False]
    """
    chosen = ~np.ones_like(x, np.bool_)
    for _ in range(count):
        best = np.argmax(np.where(chosen, -np.inf, x), axis=-1)
        chosen = chosen | (np.expand_dims(best, -1) == np.arange(x.shape[-1]))
    return chosen


def route(logits: Array, experts: Experts, correction: Array | None) -> tuple[Array, Array]:
    """Choose experts for every token, and weigh them.

    score = softmax(logits) or sigmoid(logits);  chosen = the k largest of score + correction;
    share = scaling * score / sum of the chosen scores, without the division if not `normalised`

    With groups, only the `groups_kept` groups take part whose two largest sums are the largest.

    Args:
        logits: The router's output, [B, S, E].
        experts: The mixture's facts.
        correction: Added to the scores for the choice alone, [E], or None.

    Returns:
        Which experts are chosen, and the share of each, 0 for all others; both [B, S, E].

    Source: Shazeer et al., arXiv:1701.06538; groups and correction: DeepSeek-V3, arXiv:2412.19437.

    Differs: transformers leaves open which of equal scores is chosen; here the lower index is.

    Example:
        >>> two_of_three = Experts(num_experts=3, top_k=2, intermediate_size=4)
        >>> chosen, share = route(np.log([[[1.0, 2.0, 6.0]]]), two_of_three, None)
        >>> chosen.tolist(), share.round(2).tolist()
        ([[[False, True, True]]], [[[0.0, 0.25, 0.75]]])
    """
    if experts.scoring == "sparsemixer":
        return sparsemixer(logits, experts.top_k, experts.jitter)
    score = ops.softmax(logits) if experts.scoring == "softmax" else ops.sigmoid(logits)
    preference = score if correction is None else score + correction
    if experts.groups > 1:
        shape = (*score.shape[:-1], experts.groups, experts.num_experts // experts.groups)
        grouped = np.reshape(preference, shape)
        of_group = np.sum(np.where(largest(grouped, 2), grouped, 0.0), axis=-1)
        kept = np.expand_dims(largest(of_group, experts.groups_kept), -1)
        preference = np.reshape(np.where(kept, grouped, -np.inf), score.shape)
    chosen = largest(preference, experts.top_k)
    share = np.where(chosen, score, 0.0)
    if experts.normalised:
        total = np.sum(share, axis=-1, keepdims=True)
        share = share / np.maximum(total, experts.least_sum)
    return chosen, share * experts.scaling


def sparsemixer(logits: Array, top_k: int, jitter: float) -> tuple[Array, Array]:
    """Choose experts one after another; each counts against those with nearly as large a logit.

    share = 1 / sum exp(z_e - z_best) over the experts e not chosen before with
    (z_best - z_e) / max(|z_e|, z_best) <= 2 jitter

    Args:
        logits: The router's output z, [B, S, E].
        top_k: Experts per token.
        jitter: Half the relative distance up to which a logit is nearly as large.

    Returns:
        Which experts are chosen, and the share of each, 0 for all others; both [B, S, E].

    Source: Liu et al., arXiv:2409.12136, as Phi-3.5-MoE computes it outside training.

    Example:
        >>> chosen, share = sparsemixer(np.array([[[2.0, 2.0, -1.0]]]), 2, 0.1)
        >>> share.tolist()
        [[[0.5, 1.0, 0.0]]]
    """
    chosen, share = ~np.ones_like(logits, np.bool_), np.zeros_like(logits)
    for _ in range(top_k):
        left = np.where(chosen, -np.inf, logits)
        best = np.max(left, axis=-1, keepdims=True)
        far = (best - logits) / np.maximum(np.abs(logits), best) > 2 * jitter
        at = largest(left, 1)
        share = np.where(at, ops.softmax(np.where(far, -np.inf, left)), share)
        chosen = chosen | at
    return chosen, share
