"""Cases for mistakes that no family's case shows: fixtures, changed; made when asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from candidates import Arrays
from checkpoints import arrays_of, config_of, write
from gates import case_of, made_once, model_of

from refimpl import read_model
from refimpl.loading.samples import Tokens
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, make_case, read_case
from refimpl.oracle.recipe import Recipe


@dataclass(frozen=True)
class Crafted:
    """A case made for mistakes that no other shows: a fixture, its tensors changed in place.

    `token` is put at the start of the first sequence, and twice into the second; `length` is that
    of both.
    """

    model: str
    recipe: Recipe
    weights: Callable[[Arrays], None] = lambda _: None
    config: Mapping[str, Any] = field(default_factory=dict)
    token: int | None = None
    length: int = 16
    blocks: int | None = None


def levels(tensors: Arrays) -> None:
    """Two of any four weights in a row are far smaller than the others: decisions are clear."""
    rng = np.random.default_rng(1)
    for name, x in tensors.items():
        if "_proj" in name:
            small = rng.random((*x.shape[:-1], x.shape[1] // 4, 4)).argsort(-1) < 2
            size = np.where(small, 0.02, 0.5) * rng.uniform(0.5, 1, small.shape)
            sign = rng.choice([-1, 1], small.shape)
            tensors[name] = (size * sign).reshape(x.shape).astype(x.dtype)


def pairs(tensors: Arrays) -> None:
    """Channels come in equal pairs, so that scores of a row tie."""
    for name in ("model.embed_tokens", "model.layers.0.input_layernorm"):
        x = tensors[f"{name}.weight"]
        x[..., 1::2] = x[..., ::2]
    q = tensors["model.layers.0.self_attn.q_proj.weight"]
    q[:, 1::2] = q[:, ::2]


def one_row(tensors: Arrays) -> None:
    """The first linear has two rows, sixteen times each."""
    q = tensors["model.layers.0.self_attn.q_proj.weight"]
    q[2:] = np.tile(q[:2], (15, 1))


def amplifying(tensors: Arrays) -> None:
    """Later blocks make much of what they read."""
    for name, x in tensors.items():
        if "_proj" in name and "layers.0" not in name:
            x *= 3


def exact(tensors: Arrays) -> None:
    """Scores of 0, 1.25 and 5, of which the mean is 1: some are exactly five times their mean."""
    rng = np.random.default_rng(2)
    for name, x in tensors.items():
        if (
            ".layers." in name and "layer_norm" in name
        ):  # linears read 0.25, their score is |W|
            x[:] = 0.25 if name.endswith("bias") else 0
    for i in range(3):
        shapes = {f"self_attn.{x}_proj": (32, 32) for x in "qkv"} | {"fc1": (56, 32)}
        shapes |= {"fc2": (32, 56)}
        part = f"model.decoder.layers.{i}"
        tenth = (4 * 32 * 32 + 2 * 56 * 32) // 10
        scores = np.zeros(
            10 * tenth - 32 * 32
        )  # those of the output projection, which reads 0
        scores[:tenth], scores[tenth : 5 * tenth] = 5, 1.25
        scores = rng.permutation(scores) * rng.choice([-1, 1], scores.size)
        for name, (out, width) in shapes.items():
            x, scores = scores[: out * width], scores[out * width :]
            tensors[f"{part}.{name}.weight"] = x.reshape(out, width).astype(np.float32)
        for name, wanted in (("self_attn.v_proj", 0.0), ("fc1", 0.25)):
            sums = tensors[f"{part}.{name}.weight"].sum(axis=1)
            tensors[f"{part}.{name}.bias"] = wanted - sums / 4


def sink(tensors: Arrays) -> None:
    """One token is far larger than the others."""
    tensors["model.embed_tokens.weight"][7] *= 150


def wide(tensors: Arrays) -> None:
    """More inputs than SparseGPT decides on at once; the other decisions are clear."""
    rng = np.random.default_rng(3)
    for name, x in tensors.items():
        if "mlp" in name:
            shape = (32, 160) if "down" in name else (160, 32)
            tensors[name] = np.zeros(shape, x.dtype)
    levels(tensors)
    for name, x in tensors.items():
        if "down_proj" in name:
            tensors[name] = (rng.standard_normal(x.shape) / 12).astype(x.dtype)


def dead(tensors: Arrays) -> None:
    """Some channels are always zero."""
    tensors["model.layers.0.input_layernorm.weight"][[3, 4, 20]] = 0


EVEN = Recipe(bases=("uniform",), strength=0.0, pattern="1:4")
UNEVEN = replace(EVEN, sparsity=0.4601)
WIDE = {"intermediate_size": 160}
SMALL = 64  # ids of the vocabulary that are left of Llama's


def unpruned(**changes: Any) -> Recipe:
    """A recipe whose scores and weights are no steps, and which has no pattern."""
    return Recipe(shown=(), pattern="", **changes)


CRAFTED = {
    "plain": Crafted("llama", EVEN, blocks=1),
    "uneven": Crafted("llama", UNEVEN, blocks=1),
    "levels": Crafted("llama", replace(EVEN, pattern="2:4"), levels, blocks=2),
    "tied": Crafted("llama", UNEVEN, pairs, blocks=1),
    "tied-rows": Crafted("llama", UNEVEN, one_row, blocks=1),
    "exact": Crafted("opt", unpruned(bases=("owl",)), exact, {"ffn_dim": 56}),
    "sink": Crafted("llama", unpruned(sink="exclude"), sink, token=7),
    "light": Crafted(
        "llama", unpruned(bases=("uniform", "owl"), sparsity=0.05, strength=0.0)
    ),
    "bound": Crafted(
        "llama", unpruned(bases=("uniform", "owl"), sparsity=0.05, strength=0.5)
    ),
    "strong": Crafted("llama", unpruned(strength=0.5)),
    "amplifying": Crafted("llama", unpruned(strength=0.02), amplifying),
    "half": Crafted("llama", unpruned(sparsity=513 / 1024)),
    "wide-uneven": Crafted("llama", replace(UNEVEN, pattern=""), wide, WIDE, blocks=1),
    "dead": Crafted("llama", EVEN, dead, blocks=1),
    "long": Crafted("mistral", unpruned(bases=("uniform",)), length=40),
    "llama3": Crafted("llama3", unpruned(bases=("uniform",)), length=24),
}


@cache
def oracle_case(name: str) -> Case:
    """A case of a family, or of `CRAFTED`."""
    if name not in CRAFTED:
        return case_of(name)
    return read_case(made_once(name, lambda folder: make_crafted(name, folder)))


def make_crafted(name: str, folder: Path) -> Case:
    """Make a case of `CRAFTED` in a folder, its model beside that."""
    facts, config = CRAFTED[name], dict(CRAFTED[name].config)
    tensors = copied_tensors(facts.model)
    if facts.blocks is not None:
        config["num_hidden_layers"] = facts.blocks
        gone = [
            x
            for x in tensors
            if ".layers." in x and int(x.split(".")[2]) >= facts.blocks
        ]
        tensors = {name: x for name, x in tensors.items() if name not in gone}
    facts.weights(tensors)
    if facts.model == "llama":
        config["vocab_size"] = SMALL
        for ends in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[ends] = tensors[ends][:SMALL].copy()
    size = config.get("vocab_size") or model_of(facts.model).config.vocab_size
    ids = np.random.default_rng(4).integers(8, size, (2, facts.length))
    if facts.token is not None:
        ids[0, 0] = ids[1, 1] = ids[1, 5] = facts.token
    model = read_model(
        write(
            folder.with_name(f"{name}.model"), tensors, config_of(facts.model, **config)
        )
    )
    tokens = Tokens(ids, "drawn uniformly with seed 4", "ids")
    return make_case(model, tokens, facts.recipe, folder)


def copied_tensors(fixture: str) -> Arrays:
    """The tensors of a fixture, to be changed."""
    return {name: value.copy() for name, value in arrays_of(fixture).items()}


def changed_case(
    fixture: str, tensors: Arrays, folder: Path, ids: Array, recipe: Recipe
) -> Case:
    """A case of a fixture with other weights."""
    folder.mkdir(exist_ok=True)
    model = read_model(write(folder / "model", tensors, config_of(fixture)))
    return make_case(
        model, Tokens(ids, "drawn uniformly", "ids"), recipe, folder / "case"
    )
