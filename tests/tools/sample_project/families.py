"""How ten families differ: names of the tensors in the file, norms, positions, fused weights."""

from dataclasses import dataclass, field

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
READS = {  # the trace point that a linear reads
    **dict.fromkeys(LINEARS[:3], "attn_norm"),
    "o_proj": "attn_heads",
    **dict.fromkeys(LINEARS[4:6], "mlp_norm"),
    "down_proj": "mlp_hidden",
}


@dataclass(frozen=True)
class Family:
    """Where a family keeps what, and how it differs; names are of tensors in the file."""

    parts: dict[str, str]  # our name of a part of a block: its name in the file
    layers: str = "model.layers"
    embed: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    head: str = "lm_head"
    positions: str = ""
    first_position: int = 0
    norm: str = "rms"  # "rms", "rms+1": weight + 1, "layer"
    rotary: bool = True
    scaled_embedding: bool = False
    parallel: bool = False
    transposed: bool = False
    fused: dict[str, str] = field(default_factory=dict)  # part: how it is taken apart


MLP = {f"{x}_proj": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
ATTENTION = {f"{x}_proj": f"self_attn.{x}_proj" for x in "qkvo"}
HEAD_NORMS = {f"{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
LLAMA = Family(NORMS | ATTENTION | MLP)
SANDWICH = {
    "attn_norm": "input_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": Family(NORMS | ATTENTION | MLP | HEAD_NORMS),
    "gemma2": Family(SANDWICH | ATTENTION | MLP, norm="rms+1", scaled_embedding=True),
    "gemma3_text": Family(
        SANDWICH | ATTENTION | MLP | HEAD_NORMS, norm="rms+1", scaled_embedding=True
    ),
    "phi3": Family(
        NORMS
        | {"qkv": "self_attn.qkv_proj", "o_proj": "self_attn.o_proj"}
        | {"gate_up": "mlp.gate_up_proj", "down_proj": "mlp.down_proj"},
        fused={"qkv": "stacked", "gate_up": "stacked"},
    ),
    "gpt_neox": Family(
        NORMS
        | {"qkv": "attention.query_key_value", "o_proj": "attention.dense"}
        | {"up_proj": "mlp.dense_h_to_4h", "down_proj": "mlp.dense_4h_to_h"},
        layers="gpt_neox.layers",
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        norm="layer",
        parallel=True,
        fused={"qkv": "by head"},
    ),
    "gpt2": Family(
        {"attn_norm": "ln_1", "mlp_norm": "ln_2", "qkv": "attn.c_attn", "o_proj": "attn.c_proj"}
        | {"up_proj": "mlp.c_fc", "down_proj": "mlp.c_proj"},
        layers="transformer.h",
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        positions="transformer.wpe",
        norm="layer",
        rotary=False,
        transposed=True,
        fused={"qkv": "stacked"},
    ),
    "opt": Family(
        {f"{x}_proj": f"self_attn.{x}_proj" for x in "qkv"}
        | {"o_proj": "self_attn.out_proj", "up_proj": "fc1", "down_proj": "fc2"}
        | {"attn_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"},
        layers="model.decoder.layers",
        embed="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        positions="model.decoder.embed_positions",
        first_position=2,
        norm="layer",
        rotary=False,
    ),
}
