"""The steps of a mixture of experts in place of the MLP: routing, and the experts chosen."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refimpl.explanation.shown_values import Values
from refimpl.explanation.step import Figure, Step
from refimpl.model import experts, forward, ops
from refimpl.model.config import Config, Experts
from refimpl.model.ops import Array


def mixture_steps(
    config: Config, formula: str, post: str, post_norms: tuple[Callable[..., Any], ...]
) -> list[Step]:
    """Both steps; the formula is that of one MLP, `post` of the norm after it."""
    facts = config.experts
    assert facts is not None
    scores = [ops.softmax] if facts.scoring != "sigmoid" else [ops.sigmoid]
    return [
        Step(
            "routing",
            "which experts each token goes to",
            f"A router scores {facts.num_experts} experts for each token, and chooses "
            f"{facts.top_k} of them: the others do not see the token.",
            _route_formula(facts),
            (experts.route, experts.largest, *scores),
            _routing,
        ),
        Step(
            "mlp_out",
            "each token by itself, in its experts",
            "Every expert is an MLP of its own. "
            + (
                "It reads the token times its share, and their outputs are added."
                if facts.of_inputs
                else "Their outputs are added, each with its share."
            ),
            f"each expert: {formula}\nf = "
            + ("sum_e f_e(share_e y)" if facts.of_inputs else "sum_e share_e f_e")
            + (" + the shared expert's" if facts.shared_size else "")
            + post,
            (forward.mixture, forward.mlp, ops.ACTIVATIONS[config.activation], *post_norms),
            _experts,
        ),
    ]


def _route_formula(facts: Experts) -> str:
    score = "softmax(W_router y)" if facts.scoring != "sigmoid" else "sigmoid(W_router y)"
    total = " / sum of the chosen scores" if facts.normalised else ""
    return f"score = {score}\nshare = score{total}, of the {facts.top_k} largest; else 0"


def _shares(v: Values) -> tuple[Array, Array]:
    """Which experts each token of the first sequence goes to, and the shares, [1, S, E]."""
    assert v.config.experts is not None
    logits = forward.project(v.points["mlp_norm"], v.weights, "router")
    return experts.route(logits, v.config.experts, v.weights.get("router.correction"))


def _routing(v: Values) -> Iterator[Figure]:
    chosen, share = _shares(v)
    yield Figure("share", share[0, -1], "the last token")
    yield Figure("tokens", chosen.sum(axis=(0, 1)), "per expert, of the first sequence")


def _experts(v: Values) -> Iterator[Figure]:
    chosen, _ = _shares(v)
    busiest = int(np.argmax(chosen.sum(axis=(0, 1))))
    yield Figure("hidden", v.points[f"experts.{busiest}.mlp_hidden"], f"in expert {busiest}")
    yield Figure("mlp_out", v.points["mlp_out"])
