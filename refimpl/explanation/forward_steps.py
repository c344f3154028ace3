"""The steps of the forward pass that a family has: from ids through one block to the next token."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from refimpl.explanation.shown_values import Figure, Step, Values
from refimpl.model import attention, experts, forward, ops, position_tables
from refimpl.model.config import BLOCK_EMBED, Config
from refimpl.model.mixers import parts
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids

Functions = tuple[Callable[..., Any], ...]
BLOCK = "1-one-block"  # of the tutorial
TOP = 5  # candidates for the next token


def forward_steps(config: Config, names: frozenset[str], index: int) -> list[Step]:
    """Tokens, one block whose weights have these names, and the next token.

    The docstring of a step's first function says what the step does; the others take part in it.
    """
    kind, facts = config.blocks[index], config.experts
    norm = (ops.rms_norm if config.norm == "rms" else ops.layer_norm, parts.norm)
    scaled = () if config.residual_scale == 1 else (ops.scaled,)
    mlp: Functions = (forward.mlp, ops.ACTIVATIONS[config.activation])
    routing: Functions = ()
    if facts is not None and "router.weight" in names:
        share = ops.sigmoid if facts.scoring == "sigmoid" else ops.softmax
        routing, mlp = (experts.route, experts.largest, share), (forward.mixture, *mlp)

    def where(role: str, functions: Functions = norm) -> Functions:
        """Functions of a role, if the block has it."""
        there = f"{role}.weight" in names or role in config.weightless_norms
        return functions if there else ()

    def capped(cap: float | None) -> Functions:
        """The cap of scores or logits, if the family has one."""
        return () if cap is None else (ops.soft_cap,)

    read = "resid_pre" if config.parallel_residual else "resid_mid"
    limited = () if config.qkv_limit is None else (ops.limited,)
    mask = (position_tables.tokens_seen,) if kind.chunked else ()
    rotation = (attention.rotate, position_tables.rope_tables, *where("q_rope_norm"))
    scores, normed = capped(config.attn_soft_cap), "qkv" if where("v_norm") else "qk"
    attend = (
        attention.attend,
        *mask,
        position_tables.causal_bias,
        *scores,
        ops.softmax,
    )
    attn_out = (parts.affine, attention.merge_heads, *where("attn_post_norm"), *scaled)
    mlp_out = (*mlp, *where("mlp_post_norm"), *scaled)
    last = (BLOCK_EMBED[-1],) if kind.embed_size else ()
    own = (
        (parts.block_embedding, *where("block_embed_post_norm"))
        if kind.embed_size
        else ()
    )
    head = (forward.head, *norm, *capped(config.final_soft_cap), ops.softmax)
    qk_norm = where("q_norm") or where("q_width_norm")
    mixed = [
        Step(
            "qkv",
            BLOCK,
            (parts.affine, ops.linear, *limited, attention.split_heads),
            _qkv,
        ),
        Step("qk_norm", BLOCK, qk_norm, partial(_points, names=normed)),
        Step("rope", BLOCK, () if kind.rope is None else rotation, _rope),
        Step("attention", BLOCK, attend, _attention),
    ]
    if not isinstance(kind.mixer, Attention):
        points = tuple(x for x in kind.mixer.points if x in kind.points)
        mixer, show = (
            forward.MIXERS.get(type(kind.mixer)),
            partial(_points, names=points),
        )
        mixed = [Step(kind.mixer.name, BLOCK, () if mixer is None else (mixer,), show)]
    absent = {"attn_out", "mlp_out"}.difference(kind.points)
    heads = "attn_heads" if kind.mixer.attends else "mixed"
    attn_norm = partial(_norm, before="resid_pre", after="attn_norm")
    post = partial(_sum, names=("resid_mid", "mlp_out", *last))
    mlp_norm = partial(_norm, before=read, after="mlp_norm")
    steps = (
        Step("tokens", BLOCK, (checked_ids,), _tokens),
        Step("embed", BLOCK, (forward.embed,), _embed),
        Step("attn_norm", BLOCK, where("attn_norm"), attn_norm),
        *mixed,
        Step("attn_out", BLOCK, attn_out, partial(_points, names=(heads, "attn_out"))),
        Step(
            "resid_mid",
            BLOCK,
            (forward.block,),
            partial(_sum, names=("resid_pre", "attn_out")),
        ),
        Step("mlp_norm", BLOCK, where("mlp_norm"), mlp_norm),
        Step("routing", BLOCK, routing, _routing),
        Step("mlp_out", BLOCK, mlp_out, _experts if routing else _mlp),
        Step("block_embed", BLOCK, own, partial(_points, names=BLOCK_EMBED[1:])),
        Step("resid_post", BLOCK, (forward.block,), post),
        Step("head", BLOCK, head, _head),
    )
    return [x for x in steps if x.functions and x.name not in absent]


def _tokens(v: Values) -> Iterator[Figure]:
    """The ids of all sequences, and their strings."""
    yield Figure("ids", v.ids, "[sequences, tokens]")
    if (strings := v.strings(v.ids)) is not None:
        yield Figure("strings", strings, "of these ids in tokenizer.json")


def _embed(v: Values) -> Iterator[Figure]:
    """The embedded first sequence, [1, S, D]."""
    h = v.after(0)[0].states[0].stream
    yield Figure("h_0", h, "the first sequence, as below")
    yield Figure("||h_0,t||", length(h), "per token")


def _points(v: Values, names: tuple[str, ...] | str) -> Iterator[Figure]:
    """Trace points of the block as they are."""
    for name in names:
        yield Figure(name, v.points[name])


def _norm(v: Values, before: str, after: str) -> Iterator[Figure]:
    """A norm's output, and the lengths of the tokens before and after it."""
    x, y = v.points[before], v.points[after]
    yield Figure("||x_t||", length(x), "per token, before")
    yield Figure("y", y)
    yield Figure("||y_t||", length(y), "after")


def _qkv(v: Values) -> Iterator[Figure]:
    """Queries, keys and values by head, [1, heads, S, head_dim]."""
    x, config, sizes = v.points["attn_norm"], v.config, v.attention
    for name in (x for x in "qkv" if f"{x}_proj.weight" in v.weights):
        y = ops.limited(parts.affine(x, v.weights, f"{name}_proj"), config.qkv_limit)
        yield Figure(name, attention.split_heads(y, sizes.head_dim))
    if sizes.num_key_value_heads < sizes.num_attention_heads:
        yield Figure(
            "kv head of head", sizes.kv_head_of_head, "heads share keys and values"
        )


def _rope(v: Values) -> Iterator[Figure]:
    """The angles of the block's positions, and a query before and after its rotation."""
    rope = v.config.blocks[v.index].rope
    assert rope is not None  # only then this is a step
    angles = rope.inv_freq(len(v.place.positions))
    yield Figure("angle per position", angles, f"radians, theta {rope.theta:g}")
    for name in ("q", "q_rope"):
        yield Figure(name, v.points[name][0, 0, -1], "head 0 of the last token")


def _attention(v: Values) -> Iterator[Figure]:
    """The attention of the first head, [S, S], computed again, and the heads' outputs."""
    config, points = v.config, v.points
    q, k = (points.get(f"{n}_rope", points[n])[0] for n in "qk")
    one = np.eye(q.shape[1], dtype=q.dtype)  # values that show the weights themselves
    bias, ramps, sinks = v.place.bias, v.place.ramps, v.weights.get("sinks")
    if ramps is not None:
        bias = bias + position_tables.alibi_bias(ramps[0], ramps[0], bias.dtype)
    scaled, sink = (
        q[0] * v.place.query_scale,
        None if sinks is None else sinks[:1, None],
    )
    share = attention.attend(
        scaled, k[v.attention.kv_head_of_head[0]], one, bias, config.attn_soft_cap, sink
    )
    yield Figure("scale", config.attention_scale)
    yield Figure("weights", share[-1], "the last token, head 0")
    yield Figure(
        "sum of weights", float(share[-1].sum()), "1, if the block has no sink"
    )
    yield Figure("heads", points["attn_heads"])


def _sum(v: Values, names: tuple[str, ...]) -> Iterator[Figure]:
    """The lengths of the summands and of the residual stream, and that stream."""
    after = "resid_mid" if "attn_out" in names else "resid_post"
    for name in (x for x in (*names, after) if x in v.points):
        yield Figure(f"||{name}_t||", length(v.points[name]), "per token")
    yield Figure(after, v.points[after])


def _mlp(v: Values) -> Iterator[Figure]:
    """What the last linear of the MLP reads, and what it writes."""
    yield Figure("hidden", v.points["mlp_hidden"], "what W_down reads")
    yield Figure("mlp_out", v.points["mlp_out"])


def _shares(v: Values) -> tuple[Array, Array]:
    """Which experts each token of the first sequence goes to, and the shares, [1, S, E]."""
    assert v.config.experts is not None
    read = v.points[v.config.blocks[v.index].mlp_reads[-1]]
    scores = parts.affine(read, v.weights, "router")
    return experts.route(scores, v.config.experts, v.weights)


def _routing(v: Values) -> Iterator[Figure]:
    """The shares of the experts for the last token, and how many tokens each expert gets."""
    chosen, share = _shares(v)
    yield Figure("share", share[0, -1], "the last token")
    yield Figure("tokens", chosen.sum(axis=(0, 1)), "per expert, of the first sequence")


def _experts(v: Values) -> Iterator[Figure]:
    """The hidden state of the expert with most tokens, and the sum of all experts."""
    busiest = int(np.argmax(_shares(v)[0].sum(axis=(0, 1))))
    yield Figure(
        "hidden", v.points[f"experts.{busiest}.mlp_hidden"], f"in expert {busiest}"
    )
    yield Figure("mlp_out", v.points["mlp_out"])


def _head(v: Values) -> Iterator[Figure]:
    """The next token: logits [V], and the likeliest ids."""
    p = ops.softmax(v.logits)
    best = np.argsort(-p, kind="stable")[:TOP]
    yield Figure("logits", v.logits, "after the last token")
    yield Figure("likeliest ids", best)
    if (strings := v.strings(best)) is not None:
        yield Figure("strings", strings)
    yield Figure("p", p[best], "their probabilities")


def length(x: Array) -> Array:
    """Euclidean norm of every vector."""
    return np.linalg.norm(x.astype(np.float64), axis=-1)
