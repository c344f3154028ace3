"""The steps of one block as this family takes them: attention and MLP, added to the stream."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from refimpl.explanation.mixture import mixture_steps
from refimpl.explanation.shown_values import Values
from refimpl.explanation.step import Figure, Step
from refimpl.model import attention, forward, ops, position_tables
from refimpl.model.config import Config, Rope
from refimpl.model.ops import Array


def block_steps(config: Config, names: frozenset[str], index: int) -> list[Step]:
    """The steps of one block, those that this family has."""
    kind = config.blocks[index]
    reads, x, mlp_from = "the stream after attention", "m", "mid"
    if config.parallel_residual:
        reads, x, mlp_from = "the block's input", "x", "pre"
    steps = []
    if _has_norm(config, names, "attn_norm"):
        steps.append(
            Step(
                "attn_norm",
                "one size for all tokens",
                "Tokens of the stream may differ in size by a factor of a hundred; what attention "
                "reads does not.",
                norm_formula(config, "x", "attn_norm"),
                norms(config),
                lambda v: _norm(v, "resid_pre", "attn_norm"),
            )
        )
    limit = config.qkv_limit
    steps.append(
        Step(
            "qkv",
            "queries, keys and values",
            "Each token states what it looks for (q), what others find it by (k), and what it "
            "gives (v).",
            "\n".join(f"{n} = W_{n} x{_bias(names, f'{n}_proj', n)}" for n in "qkv")
            + ("" if limit is None else f"\nlimited to [-{limit:g}, {limit:g}]")
            + "\ncut into heads of h channels",
            (
                forward.project,
                ops.linear,
                *(() if limit is None else (ops.limited,)),
                attention.split_heads,
            ),
            _qkv,
        )
    )
    if {"q_norm.weight", "q_width_norm.weight"} & names:
        width = "the h channels of a head" if "q_norm.weight" in names else "all heads together"
        steps.append(
            Step(
                "qk_norm",
                "queries and keys of one size",
                "Their directions and a learned gain decide the scores, not their sizes.",
                norm_formula(config, "q", "q_norm") + f"\nthe same for k, over {width}",
                norms(config),
                lambda v: [Figure(n, v.points[n]) for n in "qk"],
            )
        )
    if kind.rope is not None:
        after = norms(config) if _has_norm(config, names, "q_rope_norm") else ()
        steps.append(_rotation(kind.rope, config.head_dim, after))
    cap = config.attn_soft_cap
    seen = "all before it" if kind.window is None else f"those of the last {kind.window}"
    mask: tuple[Callable[..., Any], ...] = (position_tables.causal_bias,)
    if kind.chunked:
        seen = f"those before it in its chunk of {kind.window}"
        mask = (position_tables.reach, *mask)
    scores = "scale q k^T" if cap is None else f"{cap:g} tanh(scale q k^T / {cap:g})"
    scores, sink = f"{scores} + mask", ""
    if "sinks" in names:
        scores, sink = f"{scores}, s", "; s: the head's sink, which has no value"
    steps += [
        Step(
            "attention",
            "what each token reads from the others",
            f"A token sees itself and {seen}, and takes a mean of their values, weighted by how "
            "well its query fits their keys.",
            f"softmax({scores}) v      mask: 0 where visible, else -inf{sink}",
            (*mask, attention.attend, *cap_function(cap), ops.softmax),
            _attention,
        ),
        Step(
            "attn_out",
            "the heads are merged",
            "The outputs of the heads are mixed into what attention adds to the stream.",
            f"a = W_o heads{_bias(names, 'o_proj', 'o')}"
            + _added(config, names, "attn_post_norm", "a"),
            (attention.merge_heads, forward.project, *_adding(config, names, "attn_post_norm")),
            lambda v: [Figure(n, v.points[n]) for n in ("attn_heads", "attn_out")],
        ),
        Step(
            "resid_mid",
            "added to the stream",
            "A block does not replace the stream, it adds to it: so a perturbation stays in it, "
            "unless later blocks counter it.",
            "m = x + a",
            (forward.block,),
            lambda v: _sum(v, "resid_pre", "attn_out", "resid_mid"),
        ),
    ]
    if _has_norm(config, names, "mlp_norm"):
        steps.append(
            Step(
                "mlp_norm",
                "one size again",
                f"The MLP reads {reads}, normalised.",
                norm_formula(config, x, "mlp_norm"),
                norms(config),
                lambda v: _norm(v, f"resid_{mlp_from}", "mlp_norm"),
            )
        )
    steps += [
        *_mlp_steps(config, names),
        Step(
            "resid_post",
            "the stream after the block",
            "This is h_l, the state that the experiment perturbs.",
            "h_l = m + f",
            (forward.block,),
            lambda v: _sum(v, "resid_mid", "mlp_out", "resid_post"),
        ),
    ]
    return steps


def _mlp_steps(config: Config, names: frozenset[str]) -> list[Step]:
    """The MLP, or the mixture of experts in its place."""
    of_mlp = frozenset(name.removeprefix("experts.0.") for name in names)
    formula, post = _mlp_formula(config, of_mlp), _added(config, names, "mlp_post_norm", "f")
    post_norms = _adding(config, names, "mlp_post_norm")
    if "router.weight" in names:
        return mixture_steps(config, formula, post, post_norms)
    return [
        Step(
            "mlp_out",
            "each token by itself",
            "Attention moves things between tokens; the MLP works on each one alone, in a wider "
            "space with a nonlinearity.",
            formula + post,
            (forward.mlp, ops.ACTIVATIONS[config.activation], *post_norms),
            _mlp,
        )
    ]


def _norm(v: Values, before: str, after: str) -> Iterator[Figure]:
    x, y = v.points[before], v.points[after]
    yield Figure("||x_t||", length(x), "per token, before")
    yield Figure("y", y)
    yield Figure("||y_t||", length(y), "after")


def _qkv(v: Values) -> Iterator[Figure]:
    x, config = v.points["attn_norm"], v.config
    for name in "qkv":
        y = ops.limited(forward.project(x, v.weights, f"{name}_proj"), config.qkv_limit)
        yield Figure(name, attention.split_heads(y, config.head_dim))
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if groups < heads:
        yield Figure("kv head of head", config.kv_head_of_head, "heads share keys and values")


def _rotation(rope: Rope, head_dim: int, norm: tuple[Callable[..., Any], ...]) -> Step:
    """Rotary positions, and the functions of a norm after them, if any."""

    def figures(v: Values) -> Iterator[Figure]:
        yield Figure(
            "angle per position", rope.inv_freq(len(v.place.bias)), "radians; fast channels first"
        )
        for name in ("q", "q_rope"):
            yield Figure(name, v.points[name][0, 0, -1], "head 0 of the last token")
        yield Figure("||q||", length(v.points["q"])[0, 0, -1])
        kept = "normalised" if norm else "a turn keeps it"
        yield Figure("||q_rope||", length(v.points["q_rope"])[0, 0, -1], kept)

    some = "" if rope.rotary_dim == head_dim else f"first {rope.rotary_dim} channels of a head: "
    scaled = "" if rope.scaling == "default" else f", scaled as {rope.scaling}"
    then = "\nthen q <- norm(q), k <- norm(k), per head" if norm else ""
    return Step(
        "rope",
        "positions as angles",
        "Pairs of channels are turned by an angle that grows with the position, so q k^T sees how "
        "far apart two tokens are.",
        f"{some}(a, b) -> (a cos - b sin, b cos + a sin)\n"
        f"angle = position * {rope.theta:g}^(-2i / {rope.rotary_dim}){scaled}{then}",
        (position_tables.rope_tables, attention.rotate, *norm),
        figures,
    )


def _attention(v: Values) -> Iterator[Figure]:
    config, points = v.config, v.points
    q, k = (points.get(f"{n}_rope", points[n])[0] for n in "qk")
    one = np.eye(q.shape[1], dtype=q.dtype)  # values that show the weights themselves
    bias, ramps, sinks = v.place.bias, v.place.ramps, v.weights.get("sinks")
    if ramps is not None:
        bias = bias + position_tables.alibi_bias(ramps[0], ramps[0], bias.dtype)
    scaled, sink = q[0] * v.place.query_scale, None if sinks is None else sinks[:1, None]
    share = attention.attend(
        scaled, k[config.kv_head_of_head[0]], one, bias, config.attn_soft_cap, sink
    )
    yield Figure("scale", config.attention_scale)
    yield Figure("weights", share[-1], "the last token, head 0")
    rest = "" if sink is None else "the sink has the rest"
    yield Figure("sum of weights", float(share[-1].sum()), rest)
    yield Figure("heads", points["attn_heads"])


def _sum(v: Values, before: str, more: str, after: str) -> Iterator[Figure]:
    for name in (before, more, after):
        yield Figure(f"||{name}_t||", length(v.points[name]), "per token")
    yield Figure(after, v.points[after])


def _mlp(v: Values) -> Iterator[Figure]:
    hidden = v.points["mlp_hidden"]
    yield Figure("hidden", hidden, "what W_down reads")
    yield Figure("zeros in it", float((hidden == 0).mean()), "the share of them")
    yield Figure("mlp_out", v.points["mlp_out"])


def _has_norm(config: Config, names: frozenset[str], role: str) -> bool:
    return f"{role}.weight" in names or role in config.weightless_norms


def _added(config: Config, names: frozenset[str], role: str, letter: str) -> str:
    """What happens to an output before it is added to the stream."""
    scale = config.residual_scale
    norm = f"\n{letter} <- norm({letter}), again" if _has_norm(config, names, role) else ""
    return norm + ("" if scale == 1 else f"\n{letter} <- {scale:g} {letter}")


def _adding(config: Config, names: frozenset[str], role: str) -> tuple[Callable[..., Any], ...]:
    """The functions that do it."""
    norm = norms(config) if _has_norm(config, names, role) else ()
    return norm if config.residual_scale == 1 else (*norm, ops.scaled)


def _mlp_formula(config: Config, names: frozenset[str]) -> str:
    act, x = config.activation, config.gate_limit
    up, gate = (f"W_{n} y{_bias(names, f'{n}_proj', n)}" for n in ("up", "gate"))
    if not config.gated:
        inner = f"{act}({up})"
    elif x is not None:
        inner = f"{act}(min({gate}, {x:g})) * (clip({up}, -{x:g}, {x:g}) + 1)"
    else:
        inner = f"{act}({gate}) * {f'({up})' if ' + ' in up else up}"
    return f"f = W_down ({inner}){_bias(names, 'down_proj', 'down')}"


def _bias(names: frozenset[str], linear: str, letter: str) -> str:
    return f" + b_{letter}" if f"{linear}.bias" in names else ""


def length(x: Array) -> Array:
    """Euclidean norm of every vector."""
    return np.linalg.norm(x.astype(np.float64), axis=-1)


def norm_formula(config: Config, x: str, role: str) -> str:
    """The formula of this family's norm."""
    learned = "" if role in config.weightless_norms else " * w"
    if config.norm == "rms":
        return f"y = {x} / sqrt(mean({x}^2) + {config.norm_eps:g}){learned}"
    offset = " + b" if learned else ""
    return f"y = ({x} - mean {x}) / sqrt(var {x} + {config.norm_eps:g}){learned}{offset}"


def norms(config: Config) -> tuple[Callable[..., Any], ...]:
    """The functions that compute it."""
    return forward.norm, ops.rms_norm if config.norm == "rms" else ops.layer_norm


def cap_function(cap: float | None) -> tuple[Callable[..., Any], ...]:
    """The soft cap, where there is one."""
    return () if cap is None else (ops.soft_cap,)
