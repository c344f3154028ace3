"""Mistakes that people make, by kind of step: what is changed, in words that follow "if"."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np

from refimpl.allocation import allocate
from refimpl.bases import alphapruning, dlp, owl
from refimpl.method import perturbation
from refimpl.model import attention, ops, position_tables
from refimpl.model import forward as forward_pass
from refimpl.model.config import Config
from refimpl.model.experts import Experts, Observer, preferences
from refimpl.model.kernels import PLAIN
from refimpl.model.mixers import gated_delta_rule, mamba2, short_convolution
from refimpl.model.mixers.parts import Place, affine
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.ops import Array
from refimpl.oracle import dense_steps, steps
from refimpl.oracle.dense_steps import StepInputs
from refimpl.oracle.rounding import ChangedModel
from refimpl.pruners import sparsegpt, wanda
from refimpl.pruners.counts import Pattern, pattern_keep
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.wanda import wanda_keep, wanda_score
from refimpl.scoring import state_group

ByName = Mapping[str, Array]
Edit = Callable[[Any], Any]
Calls = Iterable[tuple[Any, str]]
"""Functions by their owner and name."""


@dataclass(frozen=True)
class Mistake:
    """Other inputs of a computation, or other functions of a module, a class or a record.

    A function, or constant, is made of the right one, for as long as the context is open.
    """

    edit: Callable[[StepInputs], StepInputs] = lambda x: x
    swaps: tuple[tuple[Any, str, Edit], ...] = ()

    @contextmanager
    def made(self, inputs: StepInputs) -> Iterator[StepInputs]:
        """The computation with this change."""
        old = [(owner, name, vars(owner)[name]) for owner, name, _ in self.swaps]
        try:
            for owner, name, wrap in self.swaps:
                _put(owner, name, wrap(vars(owner)[name]))
            yield self.edit(inputs)
        finally:
            for right in reversed(old):
                _put(*right)

    def __add__(self, other: "Mistake") -> "Mistake":
        return Mistake(lambda x: other.edit(self.edit(x)), self.swaps + other.swaps)


def _put(owner: Any, name: str, value: Any) -> None:
    put = setattr if isinstance(owner, ModuleType | type) else object.__setattr__
    put(owner, name, value)


def swap(owner: Any, name: str, wrap: Edit) -> Mistake:
    """Another function in place of one."""
    return Mistake(swaps=((owner, name, wrap),))


def with_recipe(**new: Any) -> Mistake:
    """Another recipe; a function is one of the right one."""

    def other(inputs: StepInputs) -> StepInputs:
        facts = {k: x(inputs.recipe) if callable(x) else x for k, x in new.items()}
        return replace(inputs, recipe=replace(inputs.recipe, **facts))

    return Mistake(other)


def weights(change: Callable[[ByName], ByName]) -> Mistake:
    """Other weights, by our names without that of the block."""
    return Mistake(lambda x: replace(x, model=x.model.as_kind(ChangedModel, change=change)))


def given(function: Callable[[ByName], ByName]) -> Mistake:
    """Other values of earlier steps, by name."""
    return Mistake(lambda x: replace(x, given={**x.given, **function(x.given)}))


def mean(x: Array) -> Array:
    """The mean over channels, [..., 1]."""
    return np.mean(x, axis=-1, keepdims=True)


def norms(scaled: Callable[[Array, float], Array]) -> Mistake:
    """Norms that scale x, centred in a LayerNorm, in another way."""
    rms = swap(PLAIN, "rms_norm", lambda _: lambda x, w, eps: scaled(x, eps) * w)
    return rms + swap(
        ops, "layer_norm", lambda _: lambda x, w, b, eps: scaled(x - mean(x), eps) * w + b
    )


def gated(function: Callable[..., Array]) -> Mistake:
    """Another function of gate, up and activation in an MLP."""

    def mlp(x: Array, w: ByName, place: Place, c: Config, path: str = "") -> Array:
        up, gate = (affine(x, w, f"{path}{name}_proj") for name in ("up", "gate"))
        gate, up = ops.clamped_gate(gate * c.gate_scale, up, c.gate_limit)
        hidden = function(gate, up, place.kernels.activations[c.activation])
        hidden = place.observe(f"{path}mlp_hidden", hidden)
        return affine(hidden, w, f"{path}down_proj") * c.mlp_scale

    return swap(forward_pass, "mlp", lambda _: mlp)


def shares(function: Callable[..., Array]) -> Mistake:
    """Other shares of the experts, of scores, preferences, logits and the choice, [B, S, E]."""

    def wrap(old: Any) -> Any:
        def route(logits: Array, e: Experts, w: ByName, observe: Observer) -> tuple[Array, Array]:
            chosen, _ = old(logits, e, w, observe)
            preference, score = preferences(logits, e, w.get("router.correction"))
            return chosen, np.where(chosen, function(score, preference, logits, chosen), 0.0)

        return route

    return swap(forward_pass, "route", wrap)


def mask(hidden: Callable[[Array], Array]) -> Mistake:
    """Another mask, a function of how far back each key is."""

    def bias(p: Array, seen: Any, dtype: Any) -> Array:
        back = p[:, None] - p
        return np.where(hidden(back) | (seen is not None and back >= seen), -np.inf, 0.0)

    return swap(position_tables, "causal_bias", lambda _: bias)


def tied(inputs: StepInputs) -> StepInputs:
    """The embeddings in place of the head's weight."""
    rows = np.arange(inputs.model.config.vocab_size)
    embed = np.take(inputs.model.embedding()["embed.weight"], rows, axis=0)
    new = weights(lambda w: {**w, "lm_head.weight": embed} if "lm_head.weight" in w else w)
    return new.edit(inputs)


def at(moved: Callable[[Array], Array]) -> Mistake:
    """Rotations at other positions."""
    return swap(position_tables, "rotation", lambda old: lambda p, *how: old(moved(p), *how))


Mistakes = Mapping[str, Mistake]
"""Mistakes by words that follow "refimpl's numbers if"."""
_NORMS: Mistakes = {
    "eps is added outside the root": norms(lambda x, e: x / (np.sqrt(mean(x * x)) + e)),
    "squares are summed, not averaged": norms(
        lambda x, e: x / np.sqrt(mean(x * x) * x.shape[-1] + e)),
    "the variance is divided by n - 1": norms(
        lambda x, e: x / np.sqrt(mean(x * x) * x.shape[-1] / (x.shape[-1] - 1) + e)),
}  # fmt: skip
_FORWARD: dict[str, Mistakes] = {
    "blocks.*.[qk]_rope": {
        "positions begin at 1": at(lambda x: x + 1),
        "all positions are 0": at(lambda x: x * 0),
    },
    "blocks.*.attn_out": {
        "there is no causal mask": mask(lambda back: back > len(back)),
        "the mask shows the next token": mask(lambda back: back < -1),
        "key-value heads are tiled (h % K), not repeated": swap(
            Attention, "kv_head_of_head",
            lambda _: property(lambda x: np.arange(x.num_attention_heads) % x.num_key_value_heads)),
        "softmax is over the queries": swap(ops, "softmax", lambda old: lambda x, _=None: (
            np.swapaxes(old(np.swapaxes(x, -2, -1)), -2, -1))),
        "heads are merged without moving their axis": swap(
            attention, "merge_heads", lambda _: lambda x: x.reshape(x.shape[0], x.shape[2], -1)),
    },
    "blocks.*.mlp_out": {
        "the activation is applied to up in place of gate": gated(lambda g, u, act: g * act(u)),
        "the activation is applied to gate * up": gated(lambda g, u, act: act(g * u)),
        "the activation is applied to both gate and up": gated(lambda g, u, act: act(g) * act(u)),
        "the activation is left out": gated(lambda g, u, act: g * u),
        "gate and up are added": gated(lambda g, u, act: act(g) + u),
        "the gate is left out": gated(lambda g, u, act: act(u)),
        "1 is not added to up": swap(ops, "clamped_gate", lambda _: lambda g, u, limit: (
            np.minimum(g, limit), ops.limited(u, limit))),
        "all experts have the same share": shares(lambda s, p, z, on: on / on.sum(-1)[..., None]),
        "shares are a softmax over the chosen logits": shares(
            lambda s, p, z, on: ops.softmax(np.where(on, z, -np.inf))),
    },
    "logits": {
        "lm_head is tied to the embeddings": Mistake(tied),
        "the last norm is left out": given(lambda x: {
            "final_norm": [x[k] for k in sorted(x, key=len) if k.endswith("resid_post")][-1]
        }),
    },
    "*norm": _NORMS, "blocks.*.[qkv]*": _NORMS, "blocks.*_out": _NORMS, "blocks.*.latent": _NORMS,
}  # fmt: skip


def noised(function: Callable[[Array, Array, Any], Array]) -> Mistake:
    """Another perturbation of states h [S, D], of noise and eta."""
    return swap(perturbation, "perturbed", lambda _: lambda h, z, eta, *_: h + function(h, z, eta))


def told(owner: Any, name: str, *more: Any) -> Mistake:
    """A function with other arguments after its first one."""
    return swap(owner, name, lambda old: lambda x, *_: old(x, *more))


def size(x: Array, axis: Any = -1) -> Array:
    """The length of the rows of an array."""
    return np.linalg.norm(x, axis=axis, keepdims=True)


def apart(**new: Callable[[Any, Array, Array], Any]) -> Mistake:
    """Another drift or alignment, of the right ones, and perturbed and clean states [S, D]."""

    def wrap(old: Any) -> Any:
        def deviation(x: Array, y: Array, kept: Array) -> Any:
            right = old(x, y, kept)
            found = {k: np.where(kept, f(right, x, y), np.nan) for k, f in new.items()}
            return right._replace(**found)

        return deviation

    return swap(state_group, "deviation", wrap)


def chosen(keep: Callable[..., Array]) -> Mistake:
    """Another decision: of scores, the goal and the rule; and the weight, without activations."""

    def wrap(old: Any) -> Any:
        def decision(w: Array, total: Any, n: int, goal: Any, how: Any) -> Any:
            if how.pruner == "sparsegpt":
                return old(w, total, n, goal, how)
            is_wanda = how.pruner == "wanda"
            rule = wanda_keep if is_wanda else magnitude_keep
            score = wanda_score(w, total / n) if is_wanda else np.abs(w.astype(np.float64))
            return keep(score, goal, pattern_keep if isinstance(goal, Pattern) else rule, w), None

        return decision

    return swap(steps, "decision", wrap)


def uncompensated(old: Any) -> Any:
    """SparseGPT's decisions without its update of later columns."""

    def compensated(weight: Array, *how: Any) -> Any:
        right = old(weight, *how)
        return right._replace(weight=np.where(right.keep, weight, 0.0))

    return compensated


def predicted(function: Callable[[Array, Array], Array]) -> Mistake:
    """Another perplexity, of ids [N, S] and probabilities [N, S, V]."""
    return swap(steps, "_perplexity", lambda _: lambda ids, z: np.atleast_1d(
        function(ids, ops.softmax(z.astype(np.float64)))))  # fmt: skip


def nats(ids: Array, p: Array) -> Array:
    """Of each token, the negative logarithm of its probability."""
    return -np.log(np.take_along_axis(p, ids[..., None], -1)[..., 0])


def other_counts(function: Callable[[Array, Array], Array]) -> Mistake:
    """Other counts, of sparsities [L] and sizes [L, linears]."""
    return swap(
        dense_steps, "linear_counts",
        lambda _: lambda s, n, target: function(s[:, None], n).astype(np.int64),
    )  # fmt: skip


def _every(scores: Any) -> Array:
    return np.concatenate([x.ravel() for x in scores])


VARIANTS: Mapping[str, Mistakes] = _FORWARD | {  # by pattern of names; all that fit are tried
    "*.drift": {
        "noise is not scaled to the state": noised(lambda h, z, eta: eta * z),
        "noise has the length eta": noised(lambda h, z, eta: eta * z / size(z)),
        "noise has its length in expectation alone": with_recipe(noise_norm="expected"),
        "noise has its length exactly": with_recipe(noise_norm="exact"),
        "sinks are left out": with_recipe(sink="exclude"),
        "sinks count": with_recipe(sink="include"),
        "drift is not relative": apart(drift=lambda _, x, y: size(x - y)[..., 0]),
    },
    "*absorption_coefficient": {
        "it is a ratio of means": swap(state_group, "surviving_drift", lambda _: lambda x, y: (
            np.full_like(x, np.nanmean(x) / np.nanmean(y)))),
    },
    "owl.signal": {
        "the line is a multiple of the median": swap(
            owl, "mean_score", lambda _: lambda x: float(np.median(_every(x)))),
    },
    "dlp*.signal": {
        "it is the mean": told(dlp, "dlp_score", "mean"),
        "it is the median": told(dlp, "dlp_score", "median"),
    },
    "alphapruning*.signal": {
        f"the fit is {fit} and xmin {xmin}": told(alphapruning, "alphapruning_alpha", fit, xmin)
        for fit in ("peak", "mid") for xmin in ("shipped", "intended")
    } | {
        "singular values are not squared": swap(
            alphapruning, "esd", lambda old: lambda x: np.sqrt(old(x))),
    },
    "*.corrected": {
        "the correction is not centred": swap(allocate, "correction", lambda _: (
            lambda u, s, most, *_: (u, np.clip(-s * u, -most, most)))),
        "logarithms are not clipped": swap(dense_steps, "clipped_log", lambda _: np.log),
        "it is made of r - 1": swap(dense_steps, "clipped_log", lambda _: lambda r: r - 1),
        "it is added to the projected base": swap(dense_steps, "allocated", lambda old: (
            lambda x, u, *how: old(old(x, None, *how).base_sparsity, u, *how))),
    },
    "*.counts": {
        "each linear is rounded down": other_counts(lambda s, n: np.floor(s * n)),
    },
    "*.keep": {
        "the whole matrix is compared": chosen(lambda s, goal, *_: magnitude_keep(s, goal)),
        "each row is compared": chosen(lambda s, goal, *_: wanda_keep(s, goal)),
        "outputs are compared, not inputs": chosen(lambda s, goal, rule, _: rule(s.T, goal).T),
        "the highest scores go": chosen(lambda s, goal, rule, _: rule(-s, goal)),
        "of equal scores the last goes": chosen(lambda s, g, rule, _: rule(s[:, ::-1], g)[:, ::-1]),
        "each row loses one weight more": chosen(lambda s, g, rule, _: rule(s, g + len(s))),
        "scores are sizes of weights": chosen(lambda s, goal, rule, w: rule(np.abs(w), goal)),
        "n of m is what stays": chosen(
            lambda s, goal, rule, _: rule(s, Pattern(goal.group - goal.pruned, goal.group))),
        **{f"the damping is {x:g} times that": with_recipe(damping=lambda r, x=x: r.damping * x)
           for x in (0.0, 0.5, 2.0, 10.0)},
    },
    "sparsegpt*.weight": {
        "weights are not compensated": swap(dense_steps, "compensated", uncompensated),
        "weights are not rounded to the file's dtype": swap(
            steps, "new_weights", lambda _: lambda x, *_: x),
    },
    "*.weight": {"weights are not pruned": swap(steps, "zeroed", lambda _: lambda w, keep: w)},
    "*.perplexity": {
        "the token itself is predicted": predicted(lambda ids, p: np.exp(nats(ids, p).mean())),
        "it is in nats": predicted(lambda ids, p: nats(ids[:, 1:], p[:, :-1]).mean()),
        "it is a power of 2": predicted(lambda ids, p: np.exp2(nats(ids[:, 1:], p[:, :-1]).mean())),
        "it is a mean of perplexities": predicted(
            lambda ids, p: np.exp(nats(ids[:, 1:], p[:, :-1]).mean(1)).mean()),
        "the sum is divided by one token more": predicted(
            lambda ids, p: np.exp(nats(ids[:, 1:], p[:, :-1]).sum() / ids.size)),
    },
}  # fmt: skip
CALLED: Mapping[str, Calls] = {  # of stages, whose arguments people confuse
    "forward": (
        *((PLAIN, x) for x in ("rms_norm", "rotate", "attention")),
        *((ops, x) for x in ("layer_norm", "softmax", "sigmoid", "silu", "softplus", "soft_cap")),
        *((x, "causal_convolution") for x in (mamba2, gated_delta_rule, short_convolution)),
        *((gated_delta_rule, x) for x in ("unit", "decays", "delta_rule")),
        *((mamba2, x) for x in ("decays", "state_space")),
        (ops, "clamped_gate"), (forward_pass, "norm"),
    ),
    "experiment": (
        (perturbation, "perturbed"), (state_group, "deviation"), (state_group, "surviving_drift"),
    ),
    "pruned": (
        (state_group, "deviation"), (state_group, "surviving_drift"),
        (perturbation.RunningDivergence, "add"), (dense_steps, "sum_of_squares"),
    ),
    "signals": ((owl, "wanda_score"), (owl, "owl_outlier_percent")),
    "allocation": (
        (owl, "owl"), (dlp, "dlp"), (alphapruning, "alphapruning"), (allocate, "project"),
        (allocate, "correction"), (dense_steps, "clipped_log"), (dense_steps, "centred_log"),
    ),
    "wanda": ((steps, "wanda_score"), (wanda, "wanda_score")),
    "pattern": ((steps, "wanda_score"), (wanda, "wanda_score")),
    "sparsegpt": ((sparsegpt, "inverse_of_upper"),),
}  # fmt: skip
