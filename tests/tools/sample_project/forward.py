"""The forward pass of ten families in plain torch, from config.json and the tensors as stored."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from families import FAMILIES, LINEARS, Family
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@dataclass(frozen=True)
class Model:
    """A checkpoint: what config.json says, and its tensors as they are stored."""

    config: dict[str, Any]
    tensors: Weights
    dtype: torch.dtype  # of the computation
    device: str

    @cached_property
    def family(self) -> Family:
        family, config = FAMILIES[self.config["model_type"]], self.config
        before = config.get("do_layer_norm_before", True)
        parallel = config.get("use_parallel_residual", family.parallel)
        if not before or parallel != family.parallel:
            raise ValueError("norm after attention, or a sequential GPT-NeoX: not implemented")
        return family

    def fact(self, *names: str, default: Any = None) -> Any:
        """What config.json says under the first of these names that it has."""
        return next((x for name in names if (x := self.config.get(name)) is not None), default)

    @cached_property
    def layers(self) -> int:
        return self.fact("num_hidden_layers", "n_layer")

    @cached_property
    def heads(self) -> tuple[int, int, int]:
        """Query heads, key-value heads, channels of a head."""
        heads = self.fact("num_attention_heads", "n_head")
        head_dim = self.fact("head_dim", default=self.fact("hidden_size", "n_embd") // heads)
        return heads, self.fact("num_key_value_heads", default=heads), head_dim

    def stored(self, index: int) -> Weights:
        """A block's tensors in the dtype of the file, as single linears, [out, in]."""
        made: Weights = {}
        for part, name in self.family.parts.items():
            for kind in ("weight", "bias"):
                x = self.tensors.get(f"{self.family.layers}.{index}.{name}.{kind}")
                if x is not None:
                    if self.family.transposed and x.ndim == 2:
                        x = x.T
                    made |= {f"{k}.{kind}": y.contiguous() for k, y in self._apart(part, x).items()}
        return made

    def _apart(self, part: str, x: Tensor) -> Weights:
        """Take a fused tensor apart."""
        heads, kv_heads, head_dim = self.heads
        how = self.family.fused.get(part)
        if how is None:
            return {part: x}
        if part == "gate_up":
            return dict(zip(("gate_proj", "up_proj"), x.chunk(2), strict=True))
        if how == "by head":  # [heads, 3, head_dim]
            found = x.unflatten(0, (heads, 3, head_dim)).unbind(1)
            return dict(zip(LINEARS[:3], (y.flatten(0, 1) for y in found), strict=True))
        sizes = [n * head_dim for n in (heads, kv_heads, kv_heads)]
        return dict(zip(LINEARS[:3], x.split(sizes), strict=True))

    def cast(self, weights: Weights) -> Weights:
        """Weights in the dtype of the computation."""
        return {name: x.to(self.dtype) for name, x in weights.items()}

    def top(self, name: str) -> Weights:
        """Weight and bias of a part outside the blocks, by kind."""
        found = {k: self.tensors.get(f"{name}.{k}") for k in ("weight", "bias")}
        return {k: x.to(self.dtype) for k, x in found.items() if x is not None}

    def window(self, index: int) -> int | None:
        """How many tokens a block looks back, itself included; None for all."""
        kinds = self.fact("layer_types")
        if kinds is not None and kinds[index] != "sliding_attention":
            return None
        return self.fact("sliding_window")

    def norm(self, x: Tensor, weights: Weights) -> Tensor:
        """The family's norm over the last axis; 16 bit are summed in float32."""
        eps = self.fact("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", default=1e-5)
        wide, scale = widened(x), widened(weights["weight"])
        if self.family.norm == "layer":
            done = F.layer_norm(wide, wide.shape[-1:], scale, widened(weights["bias"]), eps)
        else:
            scale = scale + 1 if self.family.norm == "rms+1" else scale
            done = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale
        return done.to(x.dtype)

    def rotation(self, index: int, length: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a block, [S, channels / 2]; formed in float64, cast once."""
        known = self.fact("rope_parameters")
        if "rope_type" not in known:
            known = known[self.fact("layer_types")[index]]
        if known["rope_type"] not in ("default", "linear", "llama3"):
            raise ValueError(f"rope_type {known['rope_type']}: not implemented")
        channels = int(self.heads[2] * known.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, channels, 2, dtype=torch.float64, device=self.device) / channels
        frequencies = known["rope_theta"] ** -exponents
        factor = known.get("factor", 1.0)
        if known["rope_type"] == "llama3":  # long waves slow down, short ones stay
            turns = known["original_max_position_embeddings"] * frequencies / (2 * torch.pi)
            low, high = known["low_freq_factor"], known["high_freq_factor"]
            slow = (1 - (turns - low) / (high - low)).clamp(0, 1)
            frequencies = frequencies * (slow + (1 - slow) * factor) / factor
        else:
            frequencies = frequencies / factor
        angles = torch.arange(length, device=self.device)[:, None] * frequencies
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)


def read_model(folder: Path, dtype: torch.dtype, device: str) -> Model:
    """Read config.json and model.safetensors of a folder."""
    config = json.loads((folder / "config.json").read_text())
    return Model(config, load_file(folder / "model.safetensors", device), dtype, device)


def widened(x: Tensor) -> Tensor:
    """At least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def embedded(model: Model, ids: Tensor) -> Tensor:
    """The embedding output, [N, S, D]."""
    x = model.top(model.family.embed)["weight"][ids]
    if model.family.scaled_embedding:
        x = x * torch.tensor(x.shape[-1] ** 0.5, dtype=x.dtype)
    if model.family.positions:
        first = model.family.first_position
        x = x + model.top(model.family.positions)["weight"][first : first + ids.shape[1]]
    return x


def passed(model: Model, index: int, w: Weights, x: Tensor, seen: Weights | None = None) -> Tensor:
    """A block: states [N, S, D] before it to those after it; trace points go into ``seen``."""
    seen = {} if seen is None else seen

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def normed(name: str, x: Tensor) -> Tensor:
        kinds = {kind: w[key] for kind in ("weight", "bias") if (key := f"{name}.{kind}") in w}
        return model.norm(x, kinds) if kinds else x

    seen["resid_pre"] = x
    y = seen["attn_norm"] = normed("attn_norm", x)
    for name, heads in zip("qkv", (model.heads[0], *model.heads[1:2] * 2), strict=True):
        split = linear(f"{name}_proj", y).unflatten(-1, (heads, -1)).transpose(1, 2)
        seen[name] = normed(f"{name}_norm", split)
    q, k = seen["q"], seen["k"]
    if model.family.rotary:
        cosine, sine = model.rotation(index, x.shape[1])
        q, k = (rotated(z, cosine, sine) for z in (q, k))
        seen |= {"q_rope": q, "k_rope": k}
    y = seen["attn_heads"] = attention(model, index, q, k, seen["v"])
    y = seen["attn_out"] = normed("attn_post_norm", linear("o_proj", y))
    middle = seen["resid_mid"] = x + y
    y = seen["mlp_norm"] = normed("mlp_norm", x if model.family.parallel else middle)
    act = ACTIVATIONS[model.fact("hidden_act", "hidden_activation", "activation_function")]
    if "gate_proj.weight" in w:
        hidden = act(linear("gate_proj", y)) * linear("up_proj", y)
    else:
        hidden = act(linear("up_proj", y))
    seen["mlp_hidden"] = hidden
    y = seen["mlp_out"] = normed("mlp_post_norm", linear("down_proj", hidden))
    seen["resid_post"] = middle + y
    return seen["resid_post"]


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotate the first channels of each head, channel i with channel i + half."""
    half = cosine.shape[-1]
    one, other, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat((one * cosine - other * sine, other * cosine + one * sine, rest), -1)


def attention(model: Model, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, [N, H, S, h] to [N, S, H h]."""
    groups = model.heads[0] // model.heads[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    scale = model.fact("query_pre_attn_scalar", default=q.shape[-1]) ** -0.5
    logits = widened(q @ k.transpose(-1, -2)) * scale
    if (cap := model.fact("attn_logit_softcapping")) is not None:
        logits = cap * torch.tanh(logits / cap)
    place = torch.arange(q.shape[2], device=q.device)
    back = place[:, None] - place
    window = model.window(index)
    hidden = (back < 0) if window is None else (back < 0) | (back >= window)
    share = logits.masked_fill(hidden, -torch.inf).softmax(-1).to(q.dtype)
    return (share @ v).transpose(1, 2).flatten(2)


def final_norm(model: Model, x: Tensor) -> Tensor:
    """States behind the last norm, [N, S, D]."""
    return model.norm(x, model.top(model.family.final_norm))


def head(model: Model, x: Tensor) -> Tensor:
    """Logits of the next token, [N, S, V], from states behind the last norm."""
    weight = model.top(model.family.head) or model.top(model.family.embed)
    logits = F.linear(x, weight["weight"], weight.get("bias"))
    if (cap := model.fact("final_logit_softcapping")) is not None:
        logits = cap * torch.tanh(logits / cap)
    return logits


def perplexity(model: Model, x: Tensor, ids: Tensor) -> Tensor:
    """``exp`` of the mean nats per predicted token, from states after the last block, [1]."""
    logits = head(model, final_norm(model, x))[:, :-1].double().flatten(0, 1)
    return F.cross_entropy(logits, ids[:, 1:].flatten()).exp().reshape(1)
