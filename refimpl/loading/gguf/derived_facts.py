"""What a GGUF file says by several keys, or by its tensors, as entries of `config.json`."""

from collections.abc import Mapping
from typing import Any

Facts = dict[str, Any]  # metadata without the prefix
Tensors = Mapping[str, Any]  # of the file, by their names
WINDOW = "attention.sliding_window"
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
SLIDES, KV_HEADS, INNER = f"{WINDOW}_pattern", "attention.head_count_kv", "feed_forward_length"
SCALING, LOCAL_BASE = "rope.scaling.", "rope.freq_base_swa"
LOGARITHM, ROPE_FACTORS = f"{SCALING}yarn_log_multiplier", "rope_freqs.weight"
XIELU = tuple(f"xielu.{x}" for x in ("alpha_p", "alpha_n", "beta", "eps"))
NEXTN = "nextn_predict_layers"  # blocks at the end that only predict further tokens
HEADS, STATE = "ssm.time_step_rank", "ssm.inner_size"
ROWS = "per_layer_token_embd.weight"
MISSING = "it is missing"  # of a fact, in place of its value


def by_head(facts: Facts, tensors: Tensors) -> dict[str, Any]:
    """Channels of one head of a state space, in place of those of all."""
    facts[STATE] //= facts[HEADS] if facts[HEADS] and facts[STATE] % facts[HEADS] == 0 else 1
    return {}


def granite_hybrid(facts: Facts, tensors: Tensors) -> dict[str, Any]:
    """Whether it rotates; the MLP of a model without experts is the shared one of its family."""
    entries = {
        "mamba_expand": facts[STATE] // max(facts["embedding_length"], 1),
        "position_embedding_type": "rope" if facts.pop(f"{SCALING}finetuned", False) else "nope",
    }
    if not facts.get("expert_count"):
        facts |= {"expert_count": 0, "expert_shared_feed_forward_length": facts[INNER]}
    return entries | by_head(facts, tensors)


def nemotron_h(facts: Facts, tensors: Tensors) -> dict[str, Any]:
    """The kind of each block, by what it has."""
    words, sizes = [], {name: facts.get(name, 0) for name in (KV_HEADS, INNER)}
    for i in range(facts["block_count"]):
        heads, inner = (x[i] if isinstance(x, list) else x for x in sizes.values())
        experts = f"blk.{i}.ffn_gate_inp.weight" in tensors
        word = "full_attention" if heads else "moe" if experts else "mlp"
        words.append(word if heads or inner else "linear_attention")
    facts |= {name: max(x) for name, x in sizes.items() if isinstance(x, list)}
    return {"layers_block_type": words} | by_head(facts, tensors)


def falcon_h1(facts: Facts, tensors: Tensors) -> dict[str, Any]:
    """Channels of all heads, and of one."""
    return {"mamba_d_ssm": facts[STATE]} | by_head(facts, tensors)


def deepseek(facts: Facts, tensors: Tensors) -> dict[str, Any]:
    """The sizes of a head: old files have those, new ones also those of a latent vector."""
    rotary, sizes = facts["rope.dimension_count"], dict[str, int]()
    for x in ("key", "value"):
        latent = facts.pop(f"attention.{x}_length", 0)
        sizes[x] = facts.pop(f"attention.{x}_length_mla", latent)
        facts[f"attention.{x}_length"] = rotary
    facts[KV_HEADS], factor = facts["attention.head_count"], facts.pop(LOGARITHM, None)
    if factor is None and facts.get(f"{SCALING}type") == "yarn":
        facts[LOGARITHM] = MISSING
    return {
        "qk_nope_head_dim": sizes["key"] - rotary,
        "v_head_dim": sizes["value"],
        "rope_scaling": dict.fromkeys(("mscale", "mscale_all_dim"), round(10 * (factor or 0), 6)),
    }


def gemma4(facts: Facts, tensors: Tensors) -> dict[str, Any]:
    """The sizes of blocks that see all tokens, and how they rotate; wider MLPs at the end."""
    slides = list(map(bool, x)) if isinstance(x := facts.get(SLIDES), list) else []
    wide = facts.get("attention.key_length", 0)
    factors = tensors[ROPE_FACTORS].array if ROPE_FACTORS in tensors else None
    turning = 0 if factors is None else int((factors == 1).sum())
    still = factors is not None and (factors[turning:] > 1e29).all()
    if len({*slides}) < 2 or not still or 2 * factors.size != wide:  # type: ignore[union-attr]
        facts[ROPE_FACTORS] = MISSING if factors is None else "not those of a part of a head"
        return {}
    full, sliding, heads = slides.index(False), slides.index(True), facts.get(KV_HEADS)
    for x in ("key", "value"):
        facts[f"attention.{x}_length"] = facts.pop(f"attention.{x}_length_swa")
    if facts.get("rope.dimension_count") == wide:
        facts["rope.dimension_count"] = facts.pop("rope.dimension_count_swa", None)
    if isinstance(heads, list):
        facts[KV_HEADS], heads = heads[sliding], heads[full]
    rope = {"rope_type": "proportional", "partial_rotary_factor": 2 * turning / wide}
    entries = {
        "global_head_dim": wide,
        "num_global_key_value_heads": heads,
        "attention_k_eq_v": f"blk.{full}.attn_v.weight" not in tensors,
        "enable_moe_block": bool(facts.get("expert_count")),
        "rope_parameters": {
            "full_attention": rope | {"rope_theta": facts.pop("rope.freq_base")},
            "sliding_attention": {"rope_type": "default", "rope_theta": facts.pop(LOCAL_BASE)},
        },
    }
    if ROWS in tensors:
        entries["vocab_size_per_layer_input"] = tensors[ROWS].shape[0]
    if isinstance(inner := facts[INNER], list):
        plain = len(slides) - facts.get("attention.shared_kv_layers", 0)
        if inner == [inner[0] * (1 + (i >= plain)) for i in range(len(slides))]:
            facts[INNER], entries["use_double_wide_mlp"] = inner[0], True
    return entries


def falcon(facts: Facts, tensors: Tensors) -> dict[str, Any]:
    """Which of its architectures it is, and how many norms a block has."""
    two = "blk.0.attn_norm_2.weight" in tensors
    new = two or facts.get(KV_HEADS, 1) != 1
    return {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1 + two} if new else {}
