"""Configurations of families with parallel blocks or interleaved pairs, and their refusals."""

import re
from typing import Any

import pytest
from checkpoints import config_of
from refusals import refusal_of

from refimpl.loading.config_json import read_config
from refimpl.loading.tensor_claims import roles
from refimpl.model.config import Rope

FALCON = {
    "apply_residual_connection_post_layernorm": False, "bias": False, "hidden_dropout": 0.0,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "falcon",
    "parallel_attn": True, "vocab_size": 65024,
}  # fmt: skip
FALCON_7B = FALCON | {
    "alibi": False, "hidden_size": 4544, "multi_query": True, "new_decoder_architecture": False,
    "num_attention_heads": 71, "num_hidden_layers": 32, "num_kv_heads": 71,
}  # fmt: skip
FALCON_40B = FALCON | {
    "alibi": False, "hidden_size": 8192, "new_decoder_architecture": True, "num_kv_heads": 8,
    "num_attention_heads": 128, "num_hidden_layers": 60, "multi_query": True,
}  # fmt: skip
FALCON_11B = FALCON_40B | {
    "activation": "gelu", "ffn_hidden_size": 16384, "hidden_size": 4096, "num_attention_heads": 32,
    "max_position_embeddings": 8192, "num_ln_in_parallel_attn": 1, "rope_scaling": None,
    "rope_theta": 500042.0, "tie_word_embeddings": False,
}  # fmt: skip
PHI_2 = {
    "attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "gelu_new", "hidden_size": 2560,
    "intermediate_size": 10240, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048,
    "model_type": "phi", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "partial_rotary_factor": 0.4, "qk_layernorm": False,
    "resid_pdrop": 0.1, "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "vocab_size": 51200,
}  # fmt: skip
GPT_J = {
    "activation_function": "gelu_new", "attn_pdrop": 0.0, "embd_pdrop": 0.0, "model_type": "gptj",
    "gradient_checkpointing": False, "layer_norm_epsilon": 1e-05, "n_embd": 4096, "n_head": 16,
    "n_inner": None, "n_layer": 28, "n_positions": 2048, "rotary": True, "rotary_dim": 64,
    "scale_attn_weights": True, "tie_word_embeddings": False, "tokenizer_class": "GPT2Tokenizer",
    "vocab_size": 50400,
}  # fmt: skip
STABLELM_2 = {
    "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 5632, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 4096, "model_type": "stablelm", "num_attention_heads": 32,
    "num_hidden_layers": 24, "num_key_value_heads": 32, "partial_rotary_factor": 0.25,
    "rope_theta": 10000, "tie_word_embeddings": False, "use_qkv_bias": True, "vocab_size": 100352,
}  # fmt: skip
COMMAND_R = {
    "attention_bias": False, "hidden_act": "silu", "hidden_size": 8192, "layer_norm_eps": 1e-05,
    "intermediate_size": 22528, "logit_scale": 0.0625, "max_position_embeddings": 8192,
    "model_type": "cohere", "num_attention_heads": 64, "num_hidden_layers": 40,
    "num_key_value_heads": 64, "rope_theta": 8000000.0, "use_qk_norm": False, "vocab_size": 256000,
}  # fmt: skip
GLM_4 = {
    "attention_bias": True, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
    "intermediate_size": 13696, "max_position_embeddings": 131072, "model_type": "glm",
    "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5, "rms_norm_eps": 1.5625e-07, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "vocab_size": 151552,
}  # fmt: skip
ERNIE = {
    "head_dim": 128, "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 3072,
    "max_position_embeddings": 131072, "model_type": "ernie4_5", "num_attention_heads": 16,
    "num_hidden_layers": 18, "num_key_value_heads": 2, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "rope_theta": 500000.0, "tie_word_embeddings": True, "use_bias": False, "vocab_size": 103424,
}  # fmt: skip
HELIUM = {
    "attention_bias": False, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560,
    "intermediate_size": 7040, "max_position_embeddings": 4096, "mlp_bias": False,
    "model_type": "helium", "num_attention_heads": 20, "num_hidden_layers": 24,
    "num_key_value_heads": 20, "rms_norm_eps": 1e-08, "rope_theta": 100000.0,
    "tie_word_embeddings": False, "vocab_size": 48000,
}  # fmt: skip


def turned(theta: float, rotary_dim: int) -> Rope:
    return Rope(theta, rotary_dim, interleaved=True)


# The published configuration, facts that follow from it, the rope of every block, and linears (or
# the head) with a bias.
WELL_KNOWN: dict[str, tuple[dict[str, Any], dict[str, Any], Rope, str]] = {
    "Falcon 7B": (
        FALCON_7B,
        {"num_key_value_heads": 1, "parallel_residual": True},
        Rope(1e4, 64),
        "",
    ),
    "Falcon 40B": (FALCON_40B, {"num_key_value_heads": 8, "norm": "layer"}, Rope(1e4, 64), ""),
    "Falcon 11B": (FALCON_11B, {"intermediate_size": 16384}, Rope(500042.0, 128), ""),
    "Phi-2": (PHI_2, {"parallel_residual": True, "gated": False}, Rope(1e4, 32), "qkvoudl"),
    "GPT-J": (GPT_J, {"intermediate_size": 16384, "norm": "layer"}, turned(1e4, 64), "udl"),
    "StableLM 2": (STABLELM_2, {"parallel_residual": False}, Rope(1e4, 16), "qkv"),
    "Command R": (COMMAND_R, {"logit_scale": 1 / 16, "head_dim": 128}, turned(8e6, 128), ""),
    "GLM-4": (GLM_4, {"norm": "rms", "gated": True}, turned(1e4, 64), "qkv"),
    "GLM-4 0414": (GLM_4 | {"model_type": "glm4"}, {"norm": "rms"}, turned(1e4, 64), "qkv"),
    "ERNIE 4.5": (ERNIE, {"head_dim": 128, "norm_eps": 1e-5}, turned(5e5, 128), ""),
    "Helium": (HELIUM, {"norm_eps": 1e-8}, turned(1e5, 128), ""),
}


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_well_known_configurations_are_read(name: str) -> None:
    published, facts, rope, biased = WELL_KNOWN[name]
    hub = read_config(published)
    assert {key: getattr(hub.config, key) for key in facts} == facts
    assert {kind.rope for kind in hub.config.blocks} == {rope}
    assert sorted(role[0] for role in hub.biased) == sorted(biased)


@pytest.mark.parametrize(
    ("published", "attention", "mlp"),
    [
        (FALCON_7B, "h.0.input_layernorm", "h.0.input_layernorm"),
        (
            FALCON_7B | {"parallel_attn": False},
            "h.0.input_layernorm",
            "h.0.post_attention_layernorm",
        ),
        (FALCON_40B, "h.0.ln_attn", "h.0.ln_mlp"),
        (FALCON_11B, "h.0.input_layernorm", "h.0.input_layernorm"),
        (STABLELM_2, "layers.0.input_layernorm", "layers.0.post_attention_layernorm"),
        (
            STABLELM_2 | {"use_parallel_residual": True},
            "layers.0.input_layernorm",
            "layers.0.input_layernorm",
        ),
        (COMMAND_R, "layers.0.input_layernorm", "layers.0.input_layernorm"),
    ],
)
def test_a_norm_may_be_that_of_attention_and_mlp(
    published: dict[str, Any], attention: str, mlp: str
) -> None:
    tensor = {name: role.tensor for name, role in roles(read_config(published), "")}
    assert tensor["blocks.0.attn_norm.weight"] == f"{attention}.weight"
    assert tensor["blocks.0.mlp_norm.weight"] == f"{mlp}.weight"


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "norms of no number": ("falcon_grouped", {"num_ln_in_parallel_attn": 3}, "only null"),
    "norms beside the old decoder": ("falcon", {"num_ln_in_parallel_attn": 2}, "only null"),
    "a new decoder in sequence": ("falcon_grouped", {"parallel_attn": False}, "only true"),
    "a decoder in quotes": ("falcon", {"new_decoder_architecture": "no"}, "new_decoder.*true or"),
    "queries in quotes": ("falcon", {"multi_query": 1}, "multi_query: .*got 1"),
    "Falcon after its norm": (
        "falcon", {"apply_residual_connection_post_layernorm": True}, "only false"),
    "norms of heads in quotes": ("phi", {"qk_layernorm": "no"}, "qk_layernorm: .*true or false"),
    "Phi in sequence": ("phi", {"use_parallel_residual": False}, "only true"),
    "StableLM 12B": ("stablelm", {"qk_layernorm": True}, "qk_layernorm: only false"),
    "Command R+": ("cohere", {"use_qk_norm": True}, "use_qk_norm: only false"),
    "no logits": ("cohere", {"logit_scale": 0}, "logit_scale: .*got 0"),
    "channels that are odd": ("gptj", {"rotary_dim": 3}, "3 of 8 channels"),
    "more channels than a head": ("gptj", {"rotary_dim": 64}, "rotary_dim: .*at most 8"),
    "no channels": ("gptj", {"rotary_dim": None}, "rotary_dim: .*missing"),
    "GPT-J without rotation": ("gptj", {"rotary": False}, "rotary: only true"),
    "GPT-J stretched": (
        "gptj", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: only null"),
    "biases of Helium": ("helium", {"use_bias": True}, "use_bias: not understood"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_refused_in_one_line(name: str) -> None:
    case, changes, pattern = WRONG[name]
    problem = refusal_of(read_config, config_of(case, **changes)).problem
    assert re.search(pattern, problem), problem
    assert problem.count("\n  ") == 1
