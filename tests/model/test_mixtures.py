"""Mixtures of experts: what routing costs, what mistakes in it the gates catch, what is refused."""

from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import altered, arrays_of, config_of, refusal, same_weights, write
from gates import GATES, expected_of, model_of, worst_point
from refusals import refusal_of
from test_broken_variants import Break, changed, facts, layout, op, rows, swapped, without

from refimpl import Model, forward, read_model
from refimpl.loading.config_json import read_config
from refimpl.model import experts
from refimpl.model import forward as forward_module
from refimpl.model.config import BlockKind, Experts, Rope, Temperature
from refimpl.model.experts import largest, route
from refimpl.model.forward import block, places
from refimpl.model.ops import Array

EXPERT = "model.layers.1.block_sparse_moe.experts.3"


def mixture(**changes: Any) -> Break:
    """Break the facts of a model's mixtures."""

    def broken(model: Model, _: pytest.MonkeyPatch) -> Model:
        facts = changed(model.config.experts, changes)
        return replace(model, config=replace(model.config, experts=facts))

    return broken


def routed(change: Callable[..., tuple[Array, Array]]) -> Break:
    """Put a broken function in the place of `route`, which it gets as its first argument."""

    def broken(model: Model, patch: pytest.MonkeyPatch) -> Model:
        right = experts.route
        patch.setattr(forward_module, "route", lambda *arguments: change(right, *arguments))
        return model

    return broken


def clamped(gates: Callable[..., tuple[Array, Array]]) -> Break:
    """Put another function in the place of `clamped_gate`."""
    return op("clamped_gate", lambda _: gates)


def one_fewer(facts: Experts) -> int:
    return facts.top_k - 1


def all_alike(right: Any, *arguments: Any) -> tuple[Array, Array]:
    chosen, share = right(*arguments)
    return chosen, chosen * (share.sum(axis=-1, keepdims=True) / chosen.sum(-1, keepdims=True))


def next_expert(right: Any, *arguments: Any) -> tuple[Array, Array]:
    chosen, share = right(*arguments)
    return np.roll(chosen, 1, axis=-1), np.roll(share, 1, axis=-1)


def of_last_token(right: Any, *arguments: Any) -> tuple[Array, Array]:
    """Let every token of a sequence go where its last one goes."""
    return tuple(np.repeat(x[:, -1:], x.shape[1], axis=1) for x in right(*arguments))  # type: ignore[return-value]


def corrected_shares(right: Any, logits: Array, facts: Experts, correction: Any) -> Any:
    """Let the correction change the shares, not the choice alone."""
    chosen, share = right(logits, facts, correction)
    sized = share + np.where(chosen, correction, 0)
    return chosen, sized * (share.sum(-1, keepdims=True) / sized.sum(-1, keepdims=True))


VARIANTS: list[tuple[str, Break, list[str]]] = [
    ("one expert too few", mixture(top_k=one_fewer), ["mixtral"]),
    ("one expert too many", mixture(top_k=lambda facts: facts.top_k + 1), ["mixtral"]),
    ("shares not normalised", mixture(normalised=False), ["mixtral"]),
    ("sigmoid for softmax", mixture(scoring="sigmoid"), ["mixtral"]),
    ("equal shares", routed(all_alike), ["mixtral"]),
    ("the next expert", routed(next_expert), ["mixtral"]),
    ("one choice per sequence", routed(of_last_token), ["mixtral"]),
    ("w1 and w3 exchanged", swapped("gate_proj", "up_proj"), ["mixtral", "granitemoe"]),
    ("one expert for all", layout(r"experts\.\d+\.down", expert=0), ["granitemoe"]),
    ("shares normalised", mixture(normalised=True), ["qwen2_moe", "olmoe", "dots1"]),
    ("not normalised", mixture(normalised=False), ["qwen3_moe", "ernie4_5_moe", "glm4_moe"]),
    ("softmax for sigmoid", mixture(scoring="softmax"), ["llama4_text", "glm4_moe", "dots1"]),
    ("softmax for sparsemixer", mixture(scoring="softmax"), ["phimoe"]),
    ("no near logits", mixture(jitter=1e-9), ["phimoe"]),
    ("near logits twice as far", mixture(jitter=0.4), ["phimoe"]),
    ("correction skipped", without("router.correction"), ["ernie4_5_moe", "glm4_moe", "dots1"]),
    ("correction in the shares", routed(corrected_shares), ["ernie4_5_moe", "glm4_moe"]),
    ("no groups", mixture(groups=1), ["glm4_moe", "dots1"]),
    ("one group more", mixture(groups_kept=3), ["glm4_moe", "dots1"]),
    ("one group fewer", mixture(groups_kept=1), ["glm4_moe", "dots1"]),
    ("scaling skipped", mixture(scaling=1.0), ["glm4_moe", "dots1"]),
    (
        "shared expert skipped",
        mixture(shared_size=0),
        ["llama4_text", "qwen2_moe", "ernie4_5_moe", "glm4_moe"],
    ),
    ("shared gate skipped", without(r"shared_expert\.gate\.weight"), ["qwen2_moe"]),
    ("shares of outputs", mixture(of_inputs=False), ["llama4_text"]),
    ("q, k and v not limited", facts(qkv_limit=None), ["olmoe"]),
    ("softmax of all scores", mixture(normalised=False), ["gpt_oss"]),
    ("router's bias skipped", without(r"router\.bias"), ["gpt_oss"]),
    ("experts' biases skipped", without(r"experts\.\d+\.\w+\.bias"), ["gpt_oss"]),
    ("gate and up in halves", layout(r"(gate|up)_proj", groups=1), ["gpt_oss"]),
    ("biases of gate and up in halves", layout(r"(gate|up)_proj\.bias", groups=1), ["gpt_oss"]),
    ("gate and up exchanged", swapped("gate_proj", "up_proj"), ["gpt_oss", "llama4_text"]),
    ("one bias for all experts", layout(r"down_proj\.bias", expert=0), ["gpt_oss"]),
    ("SiLU in the gate", facts(activation="silu"), ["gpt_oss"]),
    ("nothing clamped", clamped(lambda gate, up, _: (gate, up + 1)), ["gpt_oss"]),
    ("the limit 5 % off", facts(gate_limit=lambda c: 1.05 * c.gate_limit), ["gpt_oss"]),
    (
        "the gate limited from below",
        clamped(lambda gate, up, x: (gate.clip(-x, x), up.clip(-x, x) + 1)),
        ["gpt_oss"],
    ),
    (
        "up limited from above only",
        clamped(lambda gate, up, x: (gate.clip(None, x), up.clip(None, x) + 1)),
        ["gpt_oss"],
    ),
    (
        "up without 1",
        clamped(lambda gate, up, x: (gate.clip(None, x), up.clip(-x, x))),
        ["gpt_oss"],
    ),
]


@pytest.mark.parametrize(("broken", "case", "dtype"), rows(VARIANTS, *GATES))
def test_a_broken_mixture_is_caught(broken: Break, case: str, dtype: str) -> None:
    ids, expected = expected_of(case)
    with pytest.MonkeyPatch.context() as patch:
        out = forward(broken(model_of(case), patch), ids, trace=True, dtype=dtype)
    error, _ = worst_point(out.trace, expected)
    assert 10 < error / GATES[dtype] < np.inf


def test_an_expert_computes_its_tokens_and_no_others() -> None:
    model = model_of("mixtral")
    config, weights = model.config, model.block(1, np.float64)
    x = np.random.default_rng(0).standard_normal((2, 9, config.hidden_size))
    place = places(np.arange(9), config, np.float64)[config.blocks[1]]
    seen: dict[str, Array] = {}
    block(x, weights, replace(place, observe=lambda n, v: seen.setdefault(n, v)), config)
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


def test_a_share_may_multiply_what_an_expert_reads() -> None:
    model = model_of("llama4_text")
    config, weights = model.config, model.block(1, np.float64)
    x = np.random.default_rng(0).standard_normal((2, 9, config.hidden_size))
    place = places(np.arange(9), config, np.float64)[config.blocks[1]]
    seen: dict[str, Array] = {}
    block(x, weights, replace(place, observe=lambda n, v: seen.setdefault(n, v)), config)
    y = seen["mlp_norm"]
    logits = y @ weights["router.weight"].T
    for e in range(4):
        chosen = (np.argsort(-logits, axis=-1)[..., :2] == e).any(axis=-1)
        expected = (y / (1 + np.exp(-logits[..., [e]])))[chosen]
        np.testing.assert_allclose(seen[f"experts.{e}.mlp_norm"], expected, rtol=1e-13)


def test_equal_scores_go_to_the_lower_index() -> None:
    assert largest(np.zeros((2, 5)), 2).tolist() == [[True, True, False, False, False]] * 2
    facts = Experts(4, 2, 8)
    chosen, share = route(np.array([[[1.0, 3.0, 1.0, 1.0]]]), facts, None)
    assert chosen.tolist() == [[[True, True, False, False]]]
    assert share.sum() == pytest.approx(1)


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
        read_model(write(tmp_path / "m", stacked, config_of("mixtral"))), model_of("mixtral")
    )


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (
            lambda a: a.pop(f"{EXPERT}.w3.weight"),
            [f"{EXPERT}.w3.weight: missing (needed for blocks.1.experts.3.up_proj.weight, "
             "shape [20, 32])"],
        ),
        (
            lambda a: a.update({"model.layers.0.block_sparse_moe.gate.weight": np.zeros((4, 32))}),
            ["model.layers.0.block_sparse_moe.gate.weight: expected shape [5, 32], got [4, 32]"],
        ),
        (
            lambda a: a.update({f"{EXPERT}.w2.weight": np.zeros((20, 32))}),
            [f"{EXPERT}.w2.weight: expected shape [32, 20], got [20, 32]"],
        ),
        (
            lambda a: a.update({f"{EXPERT[:-1]}5.w2.weight": np.zeros((32, 20))}),
            [f"{EXPERT[:-1]}5.w2.weight: no role claims it (shape [32, 20])"],
        ),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(change: Any, lines: list[str], tmp_path: Path) -> None:
    problem = refusal(altered(tmp_path / "m", "mixtral", change)).problem
    assert problem.split("\n  ")[1:] == lines


@pytest.mark.parametrize(
    ("case", "changes", "line"),
    [
        ("mixtral", {"num_experts_per_tok": 6}, "num_experts_per_tok: 6 of 5 experts"),
        ("mixtral", {"num_experts_per_tok": 0},
         "num_experts_per_tok: expected a positive integer, got 0"),
        ("mixtral", {"num_local_experts": "8"},
         'num_local_experts: expected a positive integer, got "8"'),
        ("mixtral", {"n_group": 2}, "n_group: not understood (value 2)"),
        ("glm4_moe", {"n_group": 4}, "n_group: 4 groups, 2 of them kept, of 6 experts"),
        ("glm4_moe", {"topk_group": 4}, "n_group: 3 groups, 4 of them kept, of 6 experts"),
        ("glm4_moe", {"topk_group": 1, "num_experts_per_tok": 3},
         "topk_group: 1 groups of 2 for 3 experts per token"),
        ("qwen2_moe", {"mlp_only_layers": ["1"]},
         "mlp_only_layers: expected a list of blocks, got ['1']"),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 5},
         "use_sliding_window: only false is supported, got true"),
        ("gpt_oss", {"hidden_act": "gelu"}, 'hidden_act: only "silu" is supported, got "gelu"'),
        ("gpt_oss", {"swiglu_alpha": 1.5}, "swiglu_alpha: only 1.702 is supported, got 1.5"),
        ("gpt_oss", {"swiglu_limit": 0}, "swiglu_limit: expected a positive number, got 0"),
        ("gpt_oss", {"experts_per_token": 3}, "experts_per_token: 3 contradicts 2"),
        ("gpt_oss", {"initial_context_length": 9}, "initial_context_length: 9 contradicts 5"),
        ("llama4_text", {"moe_layers": 1}, "moe_layers: expected a list of blocks, got 1"),
        ("llama4_text", {"attention_chunk_size": None},
         "attention_chunk_size: 1 blocks slide, but it is null or not in use"),
        ("llama4_text", {"layer_types": ["sliding_attention"] * 2},
         "layer_types: expected 2 entries out of chunked_attention, full_attention, got "
         "['sliding_attention', 'sliding_attention']"),
        ("llama4_text", {"use_qk_norm": 1}, "use_qk_norm: expected true or false, got 1"),
        ("llama4_text", {"attn_scale": 0}, "attn_scale: expected a positive number, got 0"),
        ("llama4_text", {"floor_scale": 0}, "floor_scale: expected a positive integer, got 0"),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(case: str, changes: dict[str, Any], line: str) -> None:
    error = refusal_of(read_config, config_of(case, **changes))
    assert error.problem.split("\n  ")[1:] == [line]


GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
    "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 2880, "initial_context_length": 4096, "initializer_range": 0.02,
    "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64,
    "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
    "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
                     "original_max_position_embeddings": 4096, "rope_type": "yarn",
                     "truncate": False},
    "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
    "tie_word_embeddings": False, "transformers_version": "4.55.0.dev0", "use_cache": True,
    "vocab_size": 201088,
}  # fmt: skip


def test_gpt_oss_as_it_was_published() -> None:
    config = read_config(GPT_OSS_20B).config
    rope = Rope(
        150000.0, 64, "yarn", 32.0, original_max_position_embeddings=4096, truncate=False,
        attention_factor=0.1 * log(32) + 1,
    )  # fmt: skip
    kinds = [BlockKind(window, rope, mixture=True) for window in (128, None)]
    assert config.blocks == tuple(kinds * 12)
    assert config.experts == Experts(32, 4, 2880)
    assert (config.gate_limit, config.activation) == (7.0, "sigmoid_gelu")
    omitted = ("layer_types", "rope_scaling", "rope_theta", "swiglu_limit", "rms_norm_eps",
               "head_dim", "sliding_window", "attention_bias", "num_key_value_heads")  # fmt: skip
    short = {key: value for key, value in GPT_OSS_20B.items() if key not in omitted}
    assert read_config(short) == read_config(GPT_OSS_20B)


SCOUT = {
    "attention_bias": False, "attention_chunk_size": 8192, "attention_dropout": 0.0,
    "bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008], "for_llm_compressor": False,
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120, "initializer_range": 0.02,
    "interleave_moe_layer_step": 1, "intermediate_size": 8192, "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760, "model_type": "llama4_text", "no_rope_layers": [],
    "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 48,
    "num_key_value_heads": 8, "num_local_experts": 16, "output_router_logits": False,
    "pad_token_id": 200018, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16", "use_cache": True, "use_qk_norm": True, "vocab_size": 202048,
}  # fmt: skip
MAVERICK = SCOUT | {
    "interleave_moe_layer_step": 2, "num_local_experts": 128, "rope_scaling": None,
    "use_qk_norm": False,
}  # fmt: skip


def test_llama_4_as_it_was_published() -> None:
    config = read_config(SCOUT).config
    rope = Rope(5e5, 128, "llama3", 16.0, 1.0, 1.0, 8192, interleaved=True)
    near = BlockKind(8192, rope, mixture=True, chunked=True)
    far = BlockKind(None, None, mixture=True, temperature=Temperature(0.1, 8192, offset=1))
    assert config.blocks == (near, near, near, far) * 12
    assert config.experts == Experts(16, 1, 8192, 8192, "sigmoid", normalised=False, of_inputs=True)
    assert config.weightless_norms == ("q_rope_norm", "k_rope_norm")
    other = read_config(MAVERICK).config
    assert [kind.mixture for kind in other.blocks] == [False, True] * 24
    assert (other.weightless_norms, other.intermediate_size) == ((), 16384)


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes",
    [
        {},
        MAVERICK,
        {"moe_layers": [1, 7]},
        {"moe_layers": []},
        {"no_rope_layers": [0, 1] * 24},
        {"no_rope_layer_interval": 3},
        {"attention_chunk_size": None},
        {"attn_temperature_tuning": False},
        {"layer_types": ["full_attention", "chunked_attention"] * 24},
        dict.fromkeys(
            ("interleave_moe_layer_step", "attention_chunk_size", "num_local_experts", "head_dim",
             "num_experts_per_tok", "use_qk_norm", "rope_theta", "rope_scaling", "rms_norm_eps",
             "intermediate_size", "intermediate_size_mlp", "num_key_value_heads",
             "max_position_embeddings"), ...),
    ],
)  # fmt: skip
def test_transformers_understands_llama_4_the_same(changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    entries = {k: v for k, v in (SCOUT | changes).items() if v is not ...}
    theirs = transformers.Llama4TextConfig(
        **{k: v for k, v in entries.items() if k != "model_type"}
    )
    config = read_config(entries).config
    experts, chunk = config.experts, theirs.attention_chunk_size
    assert experts is not None
    assert experts == Experts(
        theirs.num_local_experts, theirs.num_experts_per_tok, theirs.intermediate_size,
        theirs.intermediate_size, "sigmoid", normalised=False, of_inputs=True,
    )  # fmt: skip
    assert config.intermediate_size == theirs.intermediate_size_mlp
    assert (config.head_dim, config.num_key_value_heads, config.norm_eps) == (
        theirs.head_dim, theirs.num_key_value_heads, theirs.rms_norm_eps,
    )  # fmt: skip
    assert config.max_position_embeddings == theirs.max_position_embeddings
    assert bool(config.weightless_norms) == theirs.use_qk_norm
    for i, kind in enumerate(config.blocks):
        rotates, name = bool(theirs.no_rope_layers[i]), theirs.layer_types[i]
        assert (kind.rope is not None) == rotates
        assert kind.rope is None or kind.rope.theta == theirs.rope_parameters["rope_theta"]
        assert kind.chunked == (name == "chunked_attention")
        assert kind.window == (chunk if kind.chunked else None)
        assert kind.mixture == (i in theirs.moe_layers)
        warmth = Temperature(theirs.attn_scale, theirs.floor_scale, offset=1)
        tuned = theirs.attn_temperature_tuning and not rotates
        assert kind.temperature == (warmth if tuned else None)
