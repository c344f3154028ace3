"""The gate has teeth: mistakes that implementations really make must fail it, in both dtypes.

Each row of `VARIANTS` breaks one thing in the model's facts, its weights or an operation, and names
the cases it must be caught on; "caught" means more than ten times over the gate at some trace point
(`pytest -rP` shows how far over, and where).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf, sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gates import GATES, expected_of, model_of, worst_point

from refimpl import Model, forward
from refimpl.model import attention, ops, position_tables
from refimpl.model import forward as forward_module
from refimpl.model.config import BlockKind, Config
from refimpl.model.kernels import PLAIN
from refimpl.model.mixers import (
    gated_delta_rule,
    latent_attention,
    mamba2,
    short_convolution,
    softmax_attention,
)
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.ops import Array
from refimpl.model.position_tables import Alibi, Rope, Temperature
from refimpl.model.state import State
from refimpl.model.weight import Weight

Break = Callable[[Model, pytest.MonkeyPatch], Model]
Row = tuple[str, Break, str]  # what is wrong, and on which cases it is seen


def changed(right: Any, changes: Mapping[str, Any]) -> Any:
    """Each field becomes a value, or a function of what is right."""
    wrong = {
        name: new(right) if callable(new) else new for name, new in changes.items()
    }
    return replace(right, **wrong)


def facts(**changes: Any) -> Break:
    return lambda model, _: replace(model, config=changed(model.config, changes))


def kinds(change: Callable[[BlockKind], BlockKind]) -> Break:
    return facts(blocks=lambda config: tuple(map(change, config.blocks)))


def rope(**changes: Any) -> Break:
    return kinds(
        lambda kind: replace(kind, rope=kind.rope and changed(kind.rope, changes))
    )


def alibi(**changes: Any) -> Break:
    return facts(alibi=lambda config: changed(config.alibi, changes))


def other_slopes(right: Alibi) -> tuple[float, ...]:
    """A geometric series from the first to the last, whatever the number of heads."""
    return tuple(
        2.0 ** (-8 * (i + 1) / len(right.slopes)) * 0.9
        for i in range(len(right.slopes))
    )


def warmth(change: Callable[[Temperature], Temperature] | None) -> Break:
    def new(kind: BlockKind) -> BlockKind:
        wrong = change(kind.temperature) if change and kind.temperature else None
        return replace(kind, temperature=wrong)

    return kinds(new)


def window(change: Callable[[int], int | None]) -> Break:
    return kinds(lambda kind: replace(kind, window=kind.window and change(kind.window)))


def matching(pattern: str, change: Callable[[Weight], Weight | None]) -> Break:
    """Break how tensors are read whose name matches; None takes them away."""

    def broken(model: Model, _: pytest.MonkeyPatch) -> Model:
        weights = {
            name: change(weight) if re.search(pattern, name) else weight
            for name, weight in model.weights.items()
        }
        return replace(
            model, weights={n: w for n, w in weights.items() if w is not None}
        )

    return broken


def without(pattern: str) -> Break:
    return matching(pattern, lambda _: None)


def layout(pattern: str, **changes: Any) -> Break:
    return matching(pattern, lambda w: replace(w, layout=replace(w.layout, **changes)))


def added_to_gains(step: float) -> Break:
    return matching(r"norm\.weight", lambda w: replace(w, offset=w.offset + step))


def swapped(role: str, other: str) -> Break:
    new = {role: other, other: role}

    def broken(model: Model, _: pytest.MonkeyPatch) -> Model:
        names = {
            name: [new.get(word, word) for word in name.split(".")]
            for name in model.weights
        }
        return replace(
            model, weights={".".join(names[n]): w for n, w in model.weights.items()}
        )

    return broken


def renamed(**roles: str) -> Break:
    def broken(model: Model, patch: pytest.MonkeyPatch) -> Model:
        for role, other in roles.items():
            model = swapped(role, other)(model, patch)
        return model

    return broken


MODULES = (ops, attention, position_tables, gated_delta_rule, mamba2)


def op(name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Break:
    """Put a broken operation in the place of the right one."""

    def broken(model: Model, patch: pytest.MonkeyPatch) -> Model:
        module = next(m for m in MODULES if name in vars(m))
        wrong = change(getattr(module, name))
        patch.setattr(module, name, wrong)
        if name in vars(PLAIN):  # how the forward finds it
            patch.setitem(vars(PLAIN), name, wrong)
        return model

    return broken


def patched(owner: Any, name: str, change: Callable[[Any], Any]) -> Break:
    """Put something else in the place of an attribute."""

    def broken(model: Model, patch: pytest.MonkeyPatch) -> Model:
        patch.setattr(owner, name, change(getattr(owner, name)))
        return model

    return broken


def backwards(right: Callable[..., Array]) -> Callable[..., Array]:
    return lambda x, cos, sin, interleaved: right(x, cos, -sin, interleaved)


def last_channels(right: Callable[..., Array]) -> Callable[..., Array]:
    def rotate(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
        start = x.shape[-1] - 2 * cos.shape[-1]
        turned = right(x[..., start:], cos, sin, interleaved)
        return np.concatenate((x[..., :start], turned), axis=-1)

    return rotate


def sees(ahead: float) -> Break:
    """Let each token see so many after it."""

    def causal_bias(positions: Array, window: int | None, dtype: Any) -> Array:
        return np.where(positions - positions[:, None] > ahead, -np.inf, 0).astype(
            dtype
        )

    return op("causal_bias", lambda _: causal_bias)


def not_the_first(right: Callable[..., Array]) -> Callable[..., Array]:
    def causal_bias(positions: Array, window: int | None, dtype: Any) -> Array:
        bias = right(positions, window, dtype).copy()
        bias[1:, 0] = -np.inf
        return bias

    return causal_bias


def by_groups(read: Callable[..., Any]) -> Callable[..., Any]:
    """Read a fused q, k, v as (its queries, key, value) of one key-value head after another."""

    def block(model: Model, i: int, dtype: str) -> dict[str, Array]:
        h, kv_heads = model.config.head_dim, model.config.num_key_value_heads
        queries = model.config.num_attention_heads // kv_heads * h
        weights, names = (
            read(model, i, dtype),
            [f"{role}_proj.weight" for role in "qkv"],
        )
        groups = np.concatenate([weights[n] for n in names]).reshape(
            kv_heads, queries + 2 * h, -1
        )
        parts = np.split(groups, [queries, queries + h], axis=1)
        return weights | {
            name: part.reshape(weights[name].shape)
            for name, part in zip(names, parts, strict=True)
        }

    return block


def whole_heads(model: Model, patch: pytest.MonkeyPatch) -> Model:
    return rope(rotary_dim=model.config.head_dim)(model, patch)


def no_blend(right: Rope) -> float:
    """The end of Llama 3's blend between long and short waves at its start."""
    return right.low_freq_factor * (1 + 1e-9)


def other_kind(config: Config) -> tuple[BlockKind, ...]:
    """Let the blocks that slide see everything, and the others slide."""
    kinds = tuple(dict.fromkeys(config.blocks))
    return tuple(kinds[1 - kinds.index(kind)] for kind in config.blocks)


def rope_of(sliding: bool) -> Break:
    def blocks(config: Config) -> tuple[BlockKind, ...]:
        wanted = next(
            k.rope for k in config.blocks if (k.window is not None) == sliding
        )
        return tuple(replace(kind, rope=wanted) for kind in config.blocks)

    return facts(blocks=blocks)


def tiled(model: Model, patch: pytest.MonkeyPatch) -> Model:
    """Give the key-value heads to the query heads in turn instead of in runs."""
    heads = np.arange(model.config.num_attention_heads)
    patch.setattr(
        Attention, "kv_head_of_head", heads % model.config.num_key_value_heads
    )
    return model


def unbiased_variance(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    centred = x - np.mean(x, axis=-1, keepdims=True)
    return (
        centred / np.sqrt(np.var(x, axis=-1, ddof=1, keepdims=True) + eps) * weight
        + bias
    )


def eps_outside(x: Array, weight: Array, eps: float) -> Array:
    return x / (np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + eps) * weight


def layer_for_rms(x: Array, weight: Array, eps: float) -> Array:
    return ops.layer_norm(x, weight, np.zeros_like(weight), eps)


def rms_for_layer(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return ops.rms_norm(x, weight, eps) + bias


def each_head_alone(model: Model, patch: pytest.MonkeyPatch) -> Model:
    """Normalise q and k head by head where they are normalised together."""
    right, h = softmax_attention.norm, model.config.head_dim

    def norm(x: Array, weights: Any, role: str, *rest: Any) -> Array:
        if not role.endswith("_width_norm") or f"{role}.weight" not in weights:
            return right(x, weights, role, *rest)
        gain = weights[f"{role}.weight"]
        heads = x.reshape(*x.shape[:-1], -1, h)
        ones = {f"{role}.weight": np.ones(h, x.dtype)}
        return right(heads, ones, role, *rest).reshape(x.shape) * gain

    patch.setattr(softmax_attention, "norm", norm)
    return model


def all_rotate(config: Config) -> tuple[BlockKind, ...]:
    """Rotate in the blocks without positions, too."""
    rope = next(kind.rope for kind in config.blocks if kind.rope)
    return tuple(replace(kind, rope=rope) for kind in config.blocks)


def one_sided(x: Array, limit: float | None) -> Array:
    return x if limit is None else np.minimum(x, limit)


def sinks(change: Callable[[Array], Array]) -> Break:
    return op(
        "softmax",
        lambda f: lambda x, sink=None: f(x, sink if sink is None else change(sink)),
    )


def gates(change: Callable[[Array], Array]) -> Break:
    """Change the gates of heads, and no other sigmoid."""
    return patched(
        softmax_attention,
        "ops",
        lambda ops: SimpleNamespace(
            **{**vars(ops), "sigmoid": lambda x: change(ops.sigmoid(x))}
        ),
    )


def convolved(change: Callable[[Array, Array], tuple[Array, Array]]) -> Break:
    def changed(right: Callable[..., Array]) -> Callable[..., Array]:
        def wrong(x: Array, weights: Any, positions: Array) -> Array:
            x, kernel = change(x, weights["conv.weight"])
            return right(x, {**weights, "conv.weight": kernel}, positions)

        return wrong

    return patched(short_convolution, "causal_convolution", changed)


def delta(**changes: Callable[[Array], Array]) -> Break:
    return arguments(
        "delta_rule", ("q", "k", "v", "log_decay", "beta", "positions"), **changes
    )


def arguments(
    function: str, names: tuple[str, ...], **changes: Callable[[Array], Array]
) -> Break:
    def changed_rule(right: Callable[..., Array]) -> Callable[..., Array]:
        def wrong(*arguments: Array) -> Array:
            pairs = zip(names, arguments, strict=True)
            return right(*(changes.get(name, lambda x: x)(x) for name, x in pairs))

        return wrong

    return op(function, changed_rule)


def mixers(**changes: Any) -> Break:
    """Change facts of what mixes tokens, in blocks whose mixer has them."""

    def new(kind: BlockKind) -> BlockKind:
        has = all(hasattr(kind.mixer, name) for name in changes)
        return replace(kind, mixer=changed(kind.mixer, changes)) if has else kind

    return kinds(new)


def beside(part: str, **changes: Any) -> Break:
    """Change facts of one of two mixers beside each other."""
    return mixers(**{part: lambda mixer: changed(getattr(mixer, part), changes)})


def latent(change: Callable[[Array], Array]) -> Break:
    return kernel_weights("a_norm.weight", change)


def kernel_weights(end: str, change: Callable[[Array], Array]) -> Break:
    """Change weights after they are read, by the end of their names."""

    def changed(
        read: Callable[..., dict[str, Array]],
    ) -> Callable[..., dict[str, Array]]:
        return lambda *which: {
            n: change(w) if n.endswith(end) else w for n, w in read(*which).items()
        }

    return patched(Model, "block", changed)


def shared(change: Callable[[Array], Array]) -> Break:
    """Change keys and values that later blocks read, [B, K, S, h]."""

    def changed(right: Callable[..., State]) -> Callable[..., State]:
        def wrong(*arguments: Any) -> State:
            state = right(*arguments)
            return replace(
                state,
                shared_kv={
                    i: (change(k), change(v)) for i, (k, v) in state.shared_kv.items()
                },
            )

        return wrong

    return patched(forward_module, "block", changed)


def table(change: Callable[[Array], Array]) -> Break:
    """Change the tables that blocks look their own embeddings up in, [V, P]."""
    return kernel_weights(
        "block_embed.weight", lambda w: change(np.array(w, np.float64))
    )


def transposed(w: Array) -> Array:
    """Rows of a matrix [n, n] that are computed, in the order of its columns."""
    n = w.shape[1]
    return w.reshape(n, n, n).swapaxes(0, 1).reshape(w.shape)


MAMBA, SPACE = (
    "granite_hybrid bamba nemotron_h falcon_h1",
    ("x", "b", "c", "step", "rate", "positions"),
)
DELTA, MLA = "qwen3_5 qwen3_next olmo_hybrid", "deepseek_v3 deepseek_v2 minicpm3"
VARIANTS: list[Row] = [
    # norms
    ("eps 1e-5 for 1e-3", facts(norm_eps=1e-5), "llama gemma3 gpt_neox gpt2"),
    ("eps outside the root", op("rms_norm", lambda _: eps_outside), "llama qwen3"),
    ("LayerNorm for RMSNorm", op("rms_norm", lambda _: layer_for_rms), "llama gemma2"),
    ("RMSNorm for LayerNorm", op("layer_norm", lambda _: rms_for_layer), "gpt2 olmo"),
    (
        "norms without weights skipped",
        facts(weightless_norms=()),
        "olmo llama4_text gemma4 gemma4_unified gemma4_small",
    ),
    ("variance over n - 1", op("layer_norm", lambda _: unbiased_variance), "gpt2 opt"),
    ("norm gains without + 1", added_to_gains(-1.0), "gemma gemma2 gemma3 nemotron"),
    (
        "norm offsets with + 1",
        matching(r"norm\.bias", lambda w: replace(w, offset=1.0)),
        "nemotron",
    ),
    ("norm gains with + 1", added_to_gains(1.0), "llama qwen3 gemma4"),
    ("norm biases skipped", facts(norm="rms"), "gpt2 opt"),
    ("final norm skipped", without("final_norm"), "llama gemma3 gpt_neox opt"),
    ("a norm that is shared skipped", without("mlp_norm"), "cohere phi gptj falcon"),
    ("one norm of two", swapped("attn_norm", "mlp_norm"), "falcon_grouped"),
    ("attention post-norm skipped", without("attn_post_norm"), "gemma2 gemma3 lfm3"),
    ("MLP post-norm skipped", without("mlp_post_norm"), "gemma2 gemma3 lfm3"),
    (
        "post_attention_layernorm as MLP norm",
        swapped("mlp_norm", "attn_post_norm"),
        "gemma2",
    ),
    ("q and k norms skipped", without("[qk]_norm"), "qwen3 gemma3 phi"),
    ("q and k norms exchanged", swapped("q_norm", "k_norm"), "qwen3 gemma3 lfm3"),
    ("q and k norms of all heads skipped", without("width_norm"), "olmo2 olmo3"),
    ("q and k norms head by head", each_head_alone, "olmo2 olmo3"),
    (
        "q and k norms after the rotation",
        renamed(q_norm="q_rope_norm", k_norm="k_rope_norm"),
        "qwen3 exaone4 apertus",
    ),
    (
        "q and k norms before the rotation",
        renamed(q_rope_norm="q_norm", k_rope_norm="k_norm"),
        "hunyuan_v1_dense",
    ),
    (
        "norms before in place of after",
        renamed(attn_post_norm="attn_norm", mlp_post_norm="mlp_norm"),
        "olmo2 exaone4 olmo_hybrid",
    ),
    # activations
    ("tanh-GELU for exact GELU", facts(activation="gelu_tanh"), "gpt_neox"),
    (
        "GELU for tanh-GELU, SiLU or ReLU",
        facts(activation="gelu"),
        "gpt2 gemma2 gemma3 llama phi3 opt",
    ),
    ("ReLU for its square", facts(activation="relu"), "arcee nemotron"),
    ("xIELU's parameters as stored", op("softplus", lambda _: lambda a: a), "apertus"),
    ("xIELU's parameters exchanged", swapped("alpha_p", "alpha_n"), "apertus"),
    (
        "xIELU's beta 0.1 off",
        matching(r"act\.beta", lambda w: replace(w, offset=0.1)),
        "apertus",
    ),
    ("gate and up exchanged", swapped("gate_proj", "up_proj"), "llama phi3 gemma2"),
    # which tokens are seen
    (
        "window one longer",
        window(lambda w: w + 1),
        "mistral gemma2 granite_swa llama4_text",
    ),
    ("window one shorter", window(lambda w: w - 1), "mistral qwen2_sliding starcoder2"),
    ("window ignored", window(lambda w: None), "mistral gemma3 phi3_partial"),
    ("windows on the other blocks", facts(blocks=other_kind), "gemma2 ministral"),
    (
        "windows one block late",
        facts(blocks=lambda c: c.blocks[-1:] + c.blocks[:-1]),
        "gemma3 gpt_oss",
    ),
    (
        "a window for chunks",
        kinds(lambda kind: replace(kind, chunked=False)),
        "llama4_text",
    ),
    (
        "chunks in every block",
        kinds(lambda k: replace(k, window=3, chunked=True)),
        "llama4_text",
    ),
    ("no causal mask", sees(inf), "llama gpt2"),
    ("the next token is seen", sees(1), "llama gpt_neox"),
    ("the first token is hidden", op("causal_bias", not_the_first), "llama opt"),
    # attention
    ("no cap on attention", facts(attn_soft_cap=None), "gemma2"),
    ("cap 2 % off", facts(attn_soft_cap=2.55), "gemma2"),
    ("logits not scaled", facts(logit_scale=1.0), "cohere granite hyperclovax"),
    (
        "logits divided by their scale",
        facts(logit_scale=lambda c: 1 / c.logit_scale),
        "cohere granite hyperclovax",
    ),
    ("no final cap", facts(final_soft_cap=None), "gemma2"),
    (
        "scale of head_dim",
        facts(attention_scale=lambda c: c.head_dim**-0.5),
        "gemma2 gemma3 granite hyperclovax gemma4 gemma4_unified",
    ),
    ("q, k, v not limited", facts(qkv_limit=None), "olmo olmoe"),
    ("q, k, v limited above only", op("limited", lambda _: one_sided), "olmo"),
    (
        "scale of D/H",
        facts(attention_scale=lambda c: sqrt(c.num_attention_heads / c.hidden_size)),
        "mistral qwen3 llama3",
    ),
    ("kv heads tiled", tiled, "llama gemma2 phi3"),
    ("sinks skipped", without("sinks"), "gpt_oss granite_swa"),
    ("one sink for all heads", sinks(lambda sink: sink[:1]), "gpt_oss granite_swa"),
    (
        "sinks scaled as scores are",
        sinks(lambda sink: 0.4 * sink),
        "gpt_oss granite_swa",
    ),
    ("a sink of zero", sinks(np.zeros_like), "gpt_oss granite_swa"),
    # other mixers
    ("gates of the heads skipped", gates(np.ones_like), "afmoe lfm3"),
    ("gates of another head", gates(lambda g: np.roll(g, 1, -1)), "afmoe lfm3"),
    (
        "taps in reverse",
        convolved(lambda x, w: (x, w[..., ::-1])),
        "lfm2 lfm2_moe lfm3",
    ),
    ("a tap too few", convolved(lambda x, w: (x, w[..., 1:])), "lfm2"),
    ("one token late", convolved(lambda x, w: (np.roll(x, 1, axis=1), w)), "lfm2"),
    ("bias of the convolution skipped", without(r"conv\.bias"), "lfm2"),
    ("no decay", delta(log_decay=np.zeros_like), DELTA),
    ("a decay twice", delta(log_decay=lambda x: 2 * x), DELTA),
    ("everything corrected", delta(beta=np.ones_like), DELTA),
    ("no correction of what is held", delta(beta=lambda x: 1e-9 * x), DELTA),
    ("queries not divided", delta(q=lambda x: x * 8**0.5), DELTA),
    ("keys of another head", delta(k=lambda x: np.roll(x, 1, 1)), DELTA),
    ("keys head by head in turn", delta(k=lambda x: x[:, [0, 2, 1, 3]]), DELTA),
    ("keys of any length", op("unit", lambda _: lambda x: x), DELTA),
    (
        "steps without their bias",
        kernel_weights("dt_bias", np.zeros_like),
        f"{DELTA} {MAMBA}",
    ),
    (
        "norms with 1 in the gate",
        matching("state_norm", lambda w: replace(w, offset=1.0)),
        DELTA,
    ),
    ("gate and value exchanged", swapped("in_proj_v", "in_proj_z"), DELTA),
    ("beta and decay exchanged", swapped("in_proj_b", "in_proj_a"), DELTA),
    (
        "q and its gate in halves",
        layout(r"(q_proj|attn_gate)\.weight", groups=1),
        "qwen3_5 qwen3_next",
    ),
    ("q, k, v, z one after another", layout(r"in_proj_[qkvz]", groups=1), "qwen3_next"),
    ("latents not normalised", latent(lambda x: x * 2), MLA),
    (
        "eps of the other norms",
        patched(latent_attention, "LATENT_EPS", lambda _: 1e-3),
        MLA,
    ),
    ("scores of the plain channels", mixers(scale=lambda m: m.plain_dim**-0.5), MLA),
    ("a scale without yarn's", mixers(scale=lambda m: 10**-0.5), "deepseek_v3"),
    (
        "groups by two experts",
        facts(experts=lambda c: replace(c.experts, group_by=2)),
        "deepseek_v2",
    ),
    (
        "every group",
        facts(experts=lambda c: replace(c.experts, top_groups=c.experts.groups)),
        "deepseek_v2 deepseek_v3 glm4_moe dots1",
    ),
    (
        "no decay of the state",
        arguments("state_space", SPACE, rate=np.zeros_like),
        MAMBA,
    ),
    (
        "b and c exchanged",
        op("state_space", lambda f: lambda x, b, c, *r: f(x, c, b, *r)),
        MAMBA,
    ),
    ("no skip", kernel_weights("D", np.zeros_like), MAMBA),
    ("steps without a limit", mixers(steps=(0.0, inf)), "granite_hybrid nemotron_h"),
    ("one group", mixers(groups=1), "granite_hybrid"),
    ("gate and values exchanged", swapped("in_proj_z", "in_proj_x"), MAMBA),
    ("gate before the norm", beside("mamba2", norm="before"), "falcon_h1"),
    ("no norm of the state", beside("mamba2", norm=""), "falcon_h1"),
    ("keys not multiplied", beside("attention", key_scale=1.0), "falcon_h1"),
    ("parts not multiplied", beside("mamba2", factors=(1.0,) * 5), "falcon_h1"),
    (
        "b and c multiplied alike",
        beside("mamba2", factors=(0.6, 1.7, 0.8, 0.8, 0.7)),
        "falcon_h1",
    ),
    ("inputs not multiplied", mixers(before=(1.0, 1.0)), "falcon_h1"),
    ("outputs of the other", mixers(after=lambda m: m.after[::-1]), "falcon_h1"),
    ("gate of the MLP not multiplied", facts(gate_scale=1.0), "falcon_h1"),
    ("MLP not multiplied", facts(mlp_scale=1.0), "falcon_h1"),
    ("at most all corrected", mixers(most=1.0), "olmo_hybrid"),
    ("eps of the other norms, state", mixers(norm_eps=None), "olmo_hybrid"),
    ("taps of k for q", swapped("conv_q", "conv_k"), "olmo_hybrid"),
    ("a block alone normalised twice", renamed(mlp_norm="mlp_post_norm"), "nemotron_h"),
    (
        "an expert's share not scaled",
        facts(experts=lambda c: replace(c.experts, scaling=1.0)),
        "nemotron_h",
    ),
    # positions
    (
        "blocks not multiplied",
        without("block_scale"),
        "gemma4 gemma4_unified gemma4_small",
    ),
    ("all waves turn", rope(turning_dim=99), "gemma4 gemma4_unified lfm3"),
    (
        "waves of the part that turns",
        rope(rotary_dim=lambda r: r.turning_dim or r.rotary_dim, scaling="default"),
        "gemma4 gemma4_unified",
    ),
    (
        "keys and values of another head",
        shared(lambda x: np.roll(x, 1, 1)),
        "gemma4_small",
    ),
    (
        "keys and values of the token before",
        shared(lambda x: np.roll(x, 1, 2)),
        "gemma4_small",
    ),
    ("an embedding of the next id", table(lambda w: np.roll(w, -1, 0)), "gemma4_small"),
    (
        "channels of an embedding in reverse",
        table(lambda w: w[:, ::-1]),
        "gemma4_small",
    ),
    ("an embedding not multiplied", table(lambda w: w / 24**0.5), "gemma4_small"),
    (
        "an embedding alone",
        kernel_weights("block_embed_stream.weight", lambda w: 1e-9 * w),
        "gemma4_small",
    ),
    (
        "gate and projection exchanged",
        swapped("block_embed_gate", "block_embed_stream"),
        "gemma4_small",
    ),
    ("no norm of the first stream", without("block_embed_stream_norm"), "gemma4_small"),
    ("no norm behind the embedding", without("block_embed_post_norm"), "gemma4_small"),
    ("theta 10 % off", rope(theta=lambda r: 1.1 * r.theta), "llama gpt_neox"),
    ("slopes for more heads", alibi(slopes=other_slopes), "bloom mpt falcon_alibi"),
    ("slopes in another order", alibi(slopes=lambda a: a.slopes[::-1]), "bloom mpt"),
    ("no ALiBi", facts(alibi=None), "bloom mpt falcon_alibi"),
    ("ALiBi not scaled", alibi(scale=1.0), "falcon_alibi"),
    ("ALiBi not rounded", alibi(rounded=False), "falcon_alibi"),
    ("embeddings not normalised", without("embed_norm"), "bloom"),
    ("yarn's tables not scaled", rope(attention_factor=1.0), "llama_yarn ministral3"),
    ("yarn's limits not rounded", rope(truncate=False), "llama_yarn ministral3"),
    ("yarn's limits rounded", rope(truncate=True), "gpt_oss"),
    ("one base for all blocks", rope(theta=200.0), "granite_swa"),
    (
        "dynamic of the original length",
        rope(original_max_position_embeddings=13),
        "llama_dynamic",
    ),
    (
        "factors of short sequences",
        rope(long_factor=lambda r: r.short_factor),
        "phi3_longrope",
    ),
    ("longrope's tables not scaled", rope(attention_factor=1.0), "phi3_longrope"),
    ("queries that do not grow", warmth(None), "ministral3 llama4_text"),
    (
        "queries that grow one token late",
        warmth(lambda t: replace(t, offset=0)),
        "llama4_text",
    ),
    (
        "queries that grow one token early",
        warmth(lambda t: replace(t, offset=1)),
        "ministral3",
    ),
    ("theta of Llama 2 for 3", rope(theta=5e5), "llama3 llama_linear"),
    (
        "pairs of neighbours",
        rope(interleaved=True),
        "llama gpt_neox gemma3 minicpm3 glm4_moe_lite",
    ),
    (
        "pairs of halves",
        rope(interleaved=False),
        "llama4_text cohere gptj glm ernie4_5 helium deepseek_v3 deepseek_v2",
    ),
    ("rotation backwards", op("rotate", backwards), "llama phi3 glm4"),
    (
        "positions from 1",
        op("rope_tables", lambda f: lambda p, *r: f(p + 1, *r)),
        "llama gemma3",
    ),
    ("a base that is not stretched", rope(theta=30.0), "hunyuan_v1_dense"),
    (
        "scaling ignored",
        rope(scaling="default"),
        "llama3 llama_linear gemma3 llama_yarn llama_dynamic phi3_longrope",
    ),
    ("scaling of all waves alike", rope(scaling="linear"), "llama3"),
    ("a blend closed to a point", rope(high_freq_factor=no_blend), "llama3"),
    ("local theta everywhere", rope_of(sliding=True), "gemma3 lfm3"),
    ("global theta everywhere", rope_of(sliding=False), "gemma3"),
    ("whole heads rotate", whole_heads, "gpt_neox gpt_neox_sequential phi3_partial"),
    (
        "the last channels rotate",
        op("rotate", last_channels),
        "gpt_neox phi3_partial glm gptj",
    ),
    ("no position offset", facts(position_offset=0), "opt opt_unbiased"),
    ("a position offset", facts(position_offset=1), "gpt2"),
    ("positions not added", without("pos_embed"), "gpt2 opt"),
    (
        "rotation in every block",
        facts(blocks=all_rotate),
        "smollm3 exaone4 llama4_text exaone_moe cohere2",
    ),
    # residual stream
    ("residual multiplier skipped", facts(residual_scale=1.0), "granite hyperclovax"),
    (
        "residual multiplier squared",
        facts(residual_scale=lambda c: c.residual_scale**2),
        "granite",
    ),
    (
        "parallel for sequential",
        facts(parallel_residual=True),
        "llama gpt_neox_sequential",
    ),
    ("sequential for parallel", facts(parallel_residual=False), "gpt_neox falcon phi"),
    ("embeddings not scaled", facts(embed_scale=1.0), "gemma gemma2 gemma3 granite"),
    ("embedding scale in bfloat16", facts(embed_scale=5.65625), "gemma2 gemma3"),
    ("embeddings scaled", facts(embed_scale=lambda c: sqrt(c.hidden_size)), "llama"),
    # storage and biases
    (
        "all q, then all k and v",
        layout(r"[qkv]_proj", groups=1),
        "gpt_neox gpt_neox_sequential falcon_grouped",
    ),
    ("qkv head by head", layout(r"[qkv]_proj", groups=4), "gpt2"),
    ("qkv by groups", patched(Model, "block", by_groups), "phi3 phi3_partial"),
    ("qkv biases in thirds", layout(r"[qkv]_proj\.bias", groups=1), "gpt_neox"),
    ("Conv1D not transposed", layout(r"o_proj\.weight", transposed=False), "gpt2"),
    ("k and v exchanged", swapped("k_proj", "v_proj"), "llama gpt2 phi3"),
    ("q, k, v biases skipped", without(r"[qkv]_proj\.bias"), "qwen2 gpt2 gpt_neox"),
    ("k bias skipped", without(r"k_proj\.bias"), "opt qwen2"),
    ("o bias skipped", without(r"o_proj\.bias"), "llama3 opt"),
    ("head bias skipped", without(r"lm_head\.bias"), "phi gptj"),
    ("MLP biases skipped", without(r"(up|gate|down)_proj\.bias"), "llama3 opt"),
]


def cast_down(right: Callable[..., Any]) -> Callable[..., Any]:
    """Compute in float32 on the way, and give float64 back."""

    def low(*arguments: Any) -> Array:
        narrow = (
            a.astype(np.float32) if isinstance(a, np.ndarray) else a for a in arguments
        )
        return right(*narrow).astype(np.float64)

    return low


def float32_tables(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda p, f, dtype, factor: tuple(
        t.astype(dtype) for t in right(p, f, np.float32, factor)
    )


# What float32 cannot show: the gate of float64 sees any step that is taken in less.
CASTS: list[Row] = [
    ("RMSNorm", op("rms_norm", cast_down), "llama gemma3"),
    ("LayerNorm", op("layer_norm", cast_down), "gpt2 gpt_neox"),
    ("softmax", op("softmax", cast_down), "llama opt"),
    ("soft cap", op("soft_cap", lambda f: lambda x, c: cast_down(f)(x, c)), "gemma2"),
    ("RoPE tables", op("rope_tables", float32_tables), "llama gemma3 gpt_neox"),
    ("erf", op("erf", cast_down), "gpt_neox"),
    (
        "the sum of shares as it is",
        facts(experts=lambda c: replace(c.experts, sum_eps=0.0)),
        "lfm2_moe",
    ),
    ("embedding scale", facts(embed_scale=float(np.float32(sqrt(32)))), "gemma2"),
]


def rows(table: list[Row], *dtypes: str) -> list[Any]:
    return [
        pytest.param(broken, case, dtype, id=f"{name}: {case}, {dtype}")
        for name, broken, cases in table
        for case in cases.split()
        for dtype in dtypes
    ]


def check_is_caught(broken: Break, case: str, dtype: str) -> None:
    ids, expected = expected_of(case)
    with pytest.MonkeyPatch.context() as patch:
        out = forward(broken(model_of(case), patch), ids, trace=True, dtype=dtype)
    error, name = worst_point(out.trace, expected)
    print(f"{error / GATES[dtype]:.3g} times the gate of {dtype} at {name}")
    assert 10 < error / GATES[dtype] < np.inf


@pytest.mark.parametrize(
    ("broken", "case", "dtype"), [*rows(VARIANTS, *GATES), *rows(CASTS, "float64")]
)
def test_a_broken_variant_is_caught(broken: Break, case: str, dtype: str) -> None:
    check_is_caught(broken, case, dtype)
