"""The forward of Llama, Mistral, Qwen 2, Phi-3 and OPT in torch, from config.json and the file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
READS = {  # the trace point that a linear reads
    **dict.fromkeys(LINEARS[:3], "attn_norm"),
    "o_proj": "attn_heads",
    **dict.fromkeys(LINEARS[4:6], "mlp_norm"),
    "down_proj": "mlp_hidden",
}
LLAMA = {  # our name of a part: its name in the file
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "mlp_norm": "model.layers.{}.post_attention_layernorm",
    **{f"{x}_proj": f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkvo"},
    **{x: f"model.layers.{{}}.mlp.{x}" for x in LINEARS[4:]},
}
OPT = {
    "embed": "model.decoder.embed_tokens",
    "positions": "model.decoder.embed_positions",
    "final_norm": "model.decoder.final_layer_norm",
    "head": "lm_head",
    "attn_norm": "model.decoder.layers.{}.self_attn_layer_norm",
    "mlp_norm": "model.decoder.layers.{}.final_layer_norm",
    **{f"{x}_proj": f"model.decoder.layers.{{}}.self_attn.{x}_proj" for x in "qkv"},
    "o_proj": "model.decoder.layers.{}.self_attn.out_proj",
    "up_proj": "model.decoder.layers.{}.fc1",
    "down_proj": "model.decoder.layers.{}.fc2",
}


@dataclass(frozen=True)
class Model:
    """A checkpoint: what config.json says, its tensors as stored, and the computation's dtype."""

    config: dict[str, Any]
    tensors: Weights
    dtype: torch.dtype

    @property
    def layers(self) -> int:
        return self.config["num_hidden_layers"]

    @property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, channels of a head."""
        heads = self.config["num_attention_heads"]
        head_dim = self.config.get("head_dim") or self.config["hidden_size"] // heads
        return heads, self.config.get("num_key_value_heads") or heads, head_dim

    def part(self, name: str, index: int = 0) -> Weights:
        """Weight and bias of a part, as stored, by kind."""
        names = OPT if self.config["model_type"] == "opt" else LLAMA
        place = names.get(name, "").format(index)
        found = {
            kind: self.tensors.get(f"{place}.{kind}") for kind in ("weight", "bias")
        }
        return {kind: x for kind, x in found.items() if x is not None}

    def stored(self, index: int) -> Weights:
        """A block's tensors in the dtype of the file, as single linears, [out, in]."""
        heads, kv_heads, head_dim = self.heads
        parts = {
            name: self.part(name, index) for name in ("attn_norm", "mlp_norm", *LINEARS)
        }
        made = {
            f"{name}.{kind}": x
            for name, part in parts.items()
            for kind, x in part.items()
        }
        width = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        half = self.config.get("intermediate_size")
        for fused, into, sizes in (  # Phi-3's
            ("self_attn.qkv_proj", LINEARS[:3], width),
            ("mlp.gate_up_proj", LINEARS[4:6], half),
        ):
            if (
                x := self.tensors.get(f"model.layers.{index}.{fused}.weight")
            ) is not None:
                some = zip(into, x.split(sizes), strict=True)
                made |= {f"{name}.weight": y.contiguous() for name, y in some}
        return made

    def cast(self, weights: Weights) -> Weights:
        """Weights in the dtype of the computation."""
        return {name: x.to(self.dtype) for name, x in weights.items()}

    def norm(self, x: Tensor, weights: Weights) -> Tensor:
        """RMSNorm, or LayerNorm where there is a bias; 16 bits are summed in float32."""
        eps = self.config.get("rms_norm_eps", 1e-5)
        wide, scale = widened(x), widened(weights["weight"])
        if "bias" in weights:
            done = F.layer_norm(
                wide, wide.shape[-1:], scale, widened(weights["bias"]), eps
            )
        else:
            done = (
                wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale
            )
        return done.to(x.dtype)

    def rotation(self, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [S, channels / 2]; formed in float64, cast once."""
        known = self.config["rope_parameters"]
        exponents = (
            torch.arange(0, self.heads[2], 2, dtype=torch.float64) / self.heads[2]
        )
        frequencies = known["rope_theta"] ** -exponents
        if known["rope_type"] == "llama3":  # long waves slow down, short ones stay
            turns = (
                known["original_max_position_embeddings"] * frequencies / (2 * torch.pi)
            )
            low, high = known["low_freq_factor"], known["high_freq_factor"]
            slow = (1 - (turns - low) / (high - low)).clamp(0, 1)
            frequencies = frequencies * (slow / known["factor"] + 1 - slow)
        elif known["rope_type"] != "default":
            raise ValueError(f"rope_type {known['rope_type']}: not implemented")
        angles = torch.arange(length)[:, None] * frequencies
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def read_model(folder: Path, dtype: torch.dtype) -> Model:
    """Read config.json and model.safetensors of a folder."""
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors", str(torch.get_default_device()))
    return Model(config, tensors, dtype)


def widened(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def embedded(model: Model, ids: Tensor) -> Tensor:
    """The embedding output, [N, S, D]."""
    x = model.cast(model.part("embed"))["weight"][ids]
    if positions := model.cast(model.part("positions")):  # OPT's begin at 2
        x = x + positions["weight"][2 : 2 + ids.shape[1]]
    return x


def passed(model: Model, w: Weights, x: Tensor, seen: Weights | None = None) -> Tensor:
    """A block: states [N, S, D] before it to those after it; trace points go into ``seen``."""
    seen = {} if seen is None else seen

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def normed(name: str, x: Tensor) -> Tensor:
        kinds = {
            kind: w[key]
            for kind in ("weight", "bias")
            if (key := f"{name}.{kind}") in w
        }
        return model.norm(x, kinds)

    seen["resid_pre"] = x
    y = seen["attn_norm"] = normed("attn_norm", x)
    for name in "qkv":
        heads = model.heads[0 if name == "q" else 1]
        seen[name] = (
            linear(f"{name}_proj", y).unflatten(-1, (heads, -1)).transpose(1, 2)
        )
    q, k = seen["q"], seen["k"]
    if "rope_parameters" in model.config:
        cosine, sine = model.rotation(x.shape[1])
        q, k = (rotated(z, cosine, sine) for z in (q, k))
        seen |= {"q_rope": q, "k_rope": k}
    y = seen["attn_heads"] = attention(model, q, k, seen["v"])
    y = seen["attn_out"] = linear("o_proj", y)
    middle = seen["resid_mid"] = x + y
    y = seen["mlp_norm"] = normed("mlp_norm", middle)
    if "gate_proj.weight" in w:
        hidden = F.silu(linear("gate_proj", y)) * linear("up_proj", y)
    else:
        hidden = F.relu(linear("up_proj", y))
    seen["mlp_hidden"] = hidden
    y = seen["mlp_out"] = linear("down_proj", hidden)
    seen["resid_post"] = middle + y
    return seen["resid_post"]


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate channel i of each head with channel i + half."""
    one, other = x.chunk(2, -1)
    return torch.cat((one * cosine - other * sine, other * cosine + one * sine), -1)


def attention(model: Model, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, [N, H, S, h] to [N, S, H h]."""
    groups = model.heads[0] // model.heads[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    logits = widened(q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    place = torch.arange(q.shape[2])
    back, window = place[:, None] - place, model.config.get("sliding_window")
    hidden = (back < 0) if window is None else (back < 0) | (back >= window)
    share = logits.masked_fill(hidden, -torch.inf).softmax(-1).to(q.dtype)
    return (share @ v).transpose(1, 2).flatten(2)


def final_norm(model: Model, x: Tensor) -> Tensor:
    """States behind the last norm, [N, S, D]."""
    return model.norm(x, model.cast(model.part("final_norm")))


def head(model: Model, x: Tensor) -> Tensor:
    """Logits of the next token, [N, S, V], from states behind the last norm."""
    weights = model.cast(model.part("head") or model.part("embed"))
    return F.linear(x, weights["weight"], weights.get("bias"))
