"""Mixtures of experts: what routing costs, what mistakes in it the gates catch, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import arrays_of, config_of, same_weights, write
from gates import GATES, model_of
from test_broken_variants import (
    Break,
    Row,
    changed,
    check_is_caught,
    facts,
    layout,
    matching,
    op,
    patched,
    rows,
    swapped,
    without,
)

from refimpl import Model, read_model
from refimpl.model import forward as forward_module
from refimpl.model.experts import Experts, largest, route, sparsemixer
from refimpl.model.forward import block, places
from refimpl.model.ops import Array
from refimpl.model.state import State


def mixture(**changes: Any) -> Break:
    def broken(model: Model, _: pytest.MonkeyPatch) -> Model:
        facts = changed(model.config.experts, changes)
        return replace(model, config=replace(model.config, experts=facts))

    return broken


def routed(change: Callable[..., tuple[Array, Array]]) -> Break:
    """Put a broken function in the place of `route`, which it gets as its first argument."""
    return patched(forward_module, "route", lambda right: partial(change, right))


def clamped(gates: Callable[..., tuple[Array, Array]]) -> Break:
    return op("clamped_gate", lambda _: gates)


def all_alike(right: Any, *arguments: Any) -> tuple[Array, Array]:
    chosen, share = right(*arguments)
    return chosen, chosen * (
        share.sum(axis=-1, keepdims=True) / chosen.sum(-1, keepdims=True)
    )


def next_expert(right: Any, *arguments: Any) -> tuple[Array, Array]:
    chosen, share = right(*arguments)
    return np.roll(chosen, 1, axis=-1), np.roll(share, 1, axis=-1)


def of_last_token(right: Any, *arguments: Any) -> tuple[Array, Array]:
    """Let every token of a sequence go where its last one goes."""
    return tuple(np.repeat(x[:, -1:], x.shape[1], axis=1) for x in right(*arguments))  # type: ignore[return-value]


def no_share(right: Any, *arguments: Any) -> tuple[Array, Array]:
    chosen, share = right(*arguments)
    return chosen, 0 * share


def corrected_shares(
    right: Any, logits: Array, facts: Experts, weights: Any, _: Any
) -> Any:
    """Let the correction change the shares, not the choice alone."""
    chosen, share = right(logits, facts, weights)
    sized = share + np.where(chosen, weights["router.correction"], 0)
    return chosen, sized * (share.sum(-1, keepdims=True) / sized.sum(-1, keepdims=True))


VARIANTS: list[Row] = [
    ("one expert too few", mixture(top_k=lambda facts: facts.top_k - 1), "mixtral"),
    ("one expert too many", mixture(top_k=lambda facts: facts.top_k + 1), "mixtral"),
    (
        "shares not normalised",
        mixture(normalised=False),
        "mixtral qwen3_moe ernie4_5_moe glm4_moe gemma4_experts gpt_oss",
    ),
    ("sigmoid for softmax", mixture(scoring="sigmoid"), "mixtral"),
    ("equal shares", routed(all_alike), "mixtral"),
    ("the next expert", routed(next_expert), "mixtral"),
    ("one choice per sequence", routed(of_last_token), "mixtral"),
    (
        "gate and up exchanged",
        swapped("gate_proj", "up_proj"),
        "mixtral granitemoe gpt_oss llama4_text",
    ),
    ("one expert for all", layout(r"experts\.\d+\.down", expert=0), "granitemoe"),
    ("shares normalised", mixture(normalised=True), "qwen2_moe olmoe dots1"),
    (
        "softmax for sigmoid or sparsemixer",
        mixture(scoring="softmax"),
        "llama4_text glm4_moe dots1 phimoe",
    ),
    ("no near logits", mixture(jitter=1e-9), "phimoe"),
    ("near logits twice as far", mixture(jitter=0.4), "phimoe"),
    (
        "correction skipped",
        without("router.correction"),
        "ernie4_5_moe glm4_moe dots1 exaone_moe hy_v3 minimax_m2 solar_open",
    ),
    ("correction in the shares", routed(corrected_shares), "ernie4_5_moe glm4_moe"),
    ("no groups", mixture(groups=1), "glm4_moe dots1"),
    ("one group more", mixture(top_groups=3), "glm4_moe dots1"),
    ("one group fewer", mixture(top_groups=1), "glm4_moe dots1"),
    ("scaling skipped", mixture(scaling=1.0), "glm4_moe dots1"),
    (
        "shared expert skipped",
        mixture(shared_size=0),
        "llama4_text qwen2_moe ernie4_5_moe glm4_moe granitemoeshared hunyuan_v1_moe",
    ),
    ("experts beside the MLP skipped", routed(no_share), "gemma4_experts"),
    ("scale of an expert skipped", without(r"router\.expert_scale"), "gemma4_experts"),
    (
        "scale of the router's channels",
        matching(r"router\.scale", lambda w: replace(w, offset=1)),
        "gemma4_experts",
    ),
    (
        "experts read what the MLP reads",
        swapped("experts_norm", "mlp_norm"),
        "gemma4_experts",
    ),
    (
        "norms after both exchanged",
        swapped("routed_norm", "dense_norm"),
        "gemma4_experts",
    ),
    ("experts not normalised", without("routed_norm"), "gemma4_experts"),
    ("the MLP not normalised", without("dense_norm"), "gemma4_experts"),
    ("shared gate skipped", without(r"shared_expert\.gate\.weight"), "qwen2_moe"),
    ("shares of outputs", mixture(of_inputs=False), "llama4_text"),
    ("router's bias skipped", without(r"router\.bias"), "gpt_oss"),
    ("experts' biases skipped", without(r"experts\.\d+\.\w+\.bias"), "gpt_oss"),
    ("gate and up in halves", layout(r"(gate|up)_proj", groups=1), "gpt_oss"),
    (
        "biases of gate and up in halves",
        layout(r"(gate|up)_proj\.bias", groups=1),
        "gpt_oss",
    ),
    ("one bias for all experts", layout(r"down_proj\.bias", expert=0), "gpt_oss"),
    ("SiLU in the gate", facts(activation="silu"), "gpt_oss"),
    ("nothing clamped", clamped(lambda gate, up, _: (gate, up + 1)), "gpt_oss"),
    ("the limit 5 % off", facts(gate_limit=lambda c: 1.05 * c.gate_limit), "gpt_oss"),
    (
        "the gate limited from below",
        clamped(lambda gate, up, x: (gate.clip(-x, x), up.clip(-x, x) + 1)),
        "gpt_oss",
    ),
    (
        "up limited from above only",
        clamped(lambda gate, up, x: (gate.clip(None, x), up.clip(None, x) + 1)),
        "gpt_oss",
    ),
    (
        "up without 1",
        clamped(lambda gate, up, x: (gate.clip(None, x), up.clip(-x, x))),
        "gpt_oss",
    ),
]


@pytest.mark.parametrize(("broken", "case", "dtype"), rows(VARIANTS, *GATES))
def test_a_broken_mixture_is_caught(broken: Break, case: str, dtype: str) -> None:
    check_is_caught(broken, case, dtype)


def test_an_expert_computes_its_tokens_and_no_others() -> None:
    model = model_of("mixtral")
    config, weights = model.config, model.block(1, np.float64)
    x = np.random.default_rng(0).standard_normal((2, 9, config.hidden_size))
    place = places(np.arange(9), config, np.float64)[config.blocks[1]]
    seen: dict[str, Array] = {}
    observed = replace(place, observe=lambda n, v: seen.setdefault(n, v))
    block(State(x, np.zeros((2, 9), int)), weights, observed, config)
    assert config.experts is not None
    logits = seen["mlp_norm"] @ weights["router.weight"].T
    total = 0
    for e in range(config.experts.num_experts):
        top = np.argsort(-logits, axis=-1)[..., : config.experts.top_k]
        tokens = seen["mlp_norm"][(top == e).any(axis=-1)]
        total += len(tokens)
        if len(tokens):
            np.testing.assert_array_equal(seen[f"experts.{e}.mlp_norm"], tokens)
            assert seen[f"experts.{e}.mlp_hidden"].shape == (len(tokens), 20)
        else:
            assert f"experts.{e}.mlp_norm" not in seen
    assert total == 2 * 9 * config.experts.top_k


def test_equal_scores_go_to_the_lower_index() -> None:
    assert (
        largest(np.zeros((2, 5)), 2).tolist() == [[True, True, False, False, False]] * 2
    )
    facts = Experts(4, 2, 8)
    chosen, share = route(np.array([[[1.0, 3.0, 1.0, 1.0]]]), facts)
    assert chosen.tolist() == [[[True, True, False, False]]]
    assert share.sum() == pytest.approx(1)


def test_a_logit_of_zero_is_as_large_as_itself() -> None:
    """In 16 bits a router's output may be exactly 0, and no number is a share of it."""
    share = sparsemixer(np.array([[[-1.0, 0.0]]]), np.array([[[False, True]]]), 1, 0.01)
    assert share.tolist() == [[[0, 1]]]


def test_stacked_experts_are_the_same_model(tmp_path: Path) -> None:
    """Transformers 5 holds all experts in one tensor, gate above up."""
    arrays = arrays_of("mixtral")
    stacked = {name: x for name, x in arrays.items() if "block_sparse_moe" not in name}
    for i in range(3):
        old, new = f"model.layers.{i}.block_sparse_moe", f"model.layers.{i}.mlp"
        gate, up, down = (
            np.stack([arrays[f"{old}.experts.{e}.{w}.weight"] for e in range(5)])
            for w in ("w1", "w3", "w2")
        )
        stacked |= {
            f"{new}.experts.gate_up_proj": np.concatenate([gate, up], axis=1),
            f"{new}.experts.down_proj": down,
            f"{new}.gate.weight": arrays[f"{old}.gate.weight"],
        }
    same_weights(
        read_model(write(tmp_path / "m", stacked, config_of("mixtral"))),
        model_of("mixtral"),
    )
