"""Mistakes that people make: what is changed of functions, facts, weights and inputs, in words.

Those of functions are in `mistakes.toml`, by kind of step; slips are in `mutations`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise, permutations, product
from math import prod
from operator import attrgetter
from pathlib import Path
from re import fullmatch
from tomllib import loads
from types import CodeType, FunctionType
from typing import Any, get_args, get_type_hints

import numpy as np

from refimpl.model.config import Mixer
from refimpl.model.ops import ACTIVATIONS, Array
from refimpl.model.position_tables import Rope
from refimpl.oracle.dense_steps import StepInputs
from refimpl.oracle.measures import Arrays, reads_of
from refimpl.oracle.mutations import function_at, reworded

Edit = Callable[[Any], Any]


@dataclass(frozen=True)
class Mistake:
    """Other inputs of a computation, or other code of functions for as long as it is `made`."""

    edit: Edit = lambda x: x  # of the inputs
    codes: tuple[
        tuple[FunctionType, CodeType | list[str]], ...
    ] = ()  # or what is `reworded`

    @contextmanager
    def made(self, inputs: StepInputs) -> Iterator[StepInputs]:
        """The computation with this change."""
        right = [(function, function.__code__) for function, _ in self.codes]
        try:
            for function, code in self.codes:
                made = code if isinstance(code, CodeType) else reworded(function, code)
                function.__code__ = made
            yield self.edit(inputs)
        finally:
            for function, old in right:
                function.__code__ = old


def weights(change: Edit) -> Mistake:
    """Other weights, by our names without that of the block."""
    return Mistake(lambda x: replace(x, model=replace(x.model, change=change)))


def taken(of: Mapping[str, str], edit: Edit = lambda x: x) -> Mistake:
    """Weights in the place of others, or changed, by name."""
    return weights(
        lambda w: {**w, **{name: edit(w[other]) for name, other in of.items()}}
    )


def tied(inputs: StepInputs) -> StepInputs:
    """The embeddings in place of the head's weight."""
    rows = np.arange(inputs.config.vocab_size)
    embed = np.take(inputs.model.embedding()["embed.weight"], rows, axis=0)
    new = weights(
        lambda w: {**w, "lm_head.weight": embed} if "lm_head.weight" in w else w
    )
    return new.edit(inputs)


def _variants() -> Iterator[tuple[str, str, Mistake]]:
    """The mistakes of `mistakes.toml`, and those that no other text of a function makes.

    Yields:
        Pattern of the names of steps, words that follow "if", and the mistake.
    """
    yield "logits", "lm_head is tied to the embeddings", Mistake(tied)
    for patterns, mistakes in MISTAKES.items():
        for words, texts in mistakes.items():
            starts = [
                i
                for i, x in enumerate(texts)
                if fullmatch(r"[a-z0-9_.]+:[A-Za-z0-9_.]+", x)
            ]
            ends = pairwise([*starts, len(texts)])
            codes = tuple(
                (function_at(texts[i]), texts[i + 1 : end]) for i, end in ends
            )
            change = Mistake(codes=codes)
            if "float16" in words:  # so it is rounded as the candidate rounds
                change = replace(change, edit=lambda x: replace(x, dtype=np.float32))
            yield from ((x, words, change) for x in patterns.split())


MISTAKES = loads((Path(__file__).parent / "mistakes.toml").read_text("utf-8"))
SLIPS = [  # patterns of names of steps, and a function of refimpl
    (x, y)
    for k, v in MISTAKES.items()
    for y in v.pop("slips", "").split()
    for x in k.split()
]
VARIANTS = [*_variants()]  # patterns of names of steps, words, and the mistake


Changes = Iterator[tuple[str, Mistake]]
"""With words that follow "refimpl's numbers if"."""
EDITS: Mapping[tuple[str, str], Edit] = {  # of a kind of weight
    ("is transposed", ""): lambda x: x.T,
    ("is reversed", ""): lambda x: x[..., ::-1],
    ("is taken plus 1", "of a norm"): lambda x: x + 1,
    ("is negated", "of one axis"): lambda x: -x,
    ("is taken minus 1", "of a norm"): lambda x: x - 1,
    ("is left out (0)", "of one axis"): lambda x: x * 0,
    ("is left out (1)", "of a norm"): lambda x: x * 0 + 1,
}
STRUCTURE = (
    "num_experts",
    "blocks",
    "experts",
    "alibi",
    "mixer",
    "groups",
    "top_groups",
)
SCALED_BY = (
    "dim",
    "size",
    "query",
    "blocks",
)  # ends of names of numbers that scales are made of
SMALL_BLOCK = 10_000_000  # weights of a block whose neighbours are read, too
POWERS = {
    -0.5: "1 / the root of {}",
    1.0: "{}",
    -1.0: "1 / {}",
    0.5: "the root of {}",
    2.0: "the square of {}",
    -2.0: "1 / the square of {}",
}


def numbers_of(inputs: StepInputs, block: int, forward: bool) -> dict[str, float]:
    """The model's numbers, and those of the case, by name."""
    c, (sequences, tokens) = inputs.config, inputs.ids.shape
    kind = c.blocks[block]
    found: dict[str, float] = {"blocks": c.num_blocks} if forward else {}
    records = (kind.mixer, c, kind, kind.rope, c.experts) if forward else ()
    for record in filter(None, records):
        for name, x in vars(record).items():
            if type(x) in (int, float) and x not in (0, 1):
                found.setdefault(name, x)
    if {"plain_dim", "rotary_dim"} <= found.keys():
        found["channels of a query"] = found["plain_dim"] + found["rotary_dim"]
    return found | {"tokens": tokens, "sequences": sequences}


def of_facts(inputs: StepInputs, block: int, numbers: Mapping[str, float]) -> Changes:
    """Other values of the model's facts, of its mixture, and of one block's kind and records."""
    c = inputs.config
    kind, place = c.blocks[block], f"blocks.{block % c.num_blocks}."
    inside = [
        f"mixer.{k}." for k, x in vars(kind.mixer).items() if isinstance(x, Mixer)
    ]
    paths = [(kind, x) for x in ("", "mixer.", *inside, "rope.", "temperature.")]
    for owner, path in [(c, ""), (c, "experts."), (c, "alibi."), *paths]:
        record = attrgetter(path[:-1])(owner) if path else owner
        hints = get_type_hints(type(record))  # none of None
        for name in (x for x in hints if x in vars(record) and x not in STRUCTURE):
            old, found = vars(record)[name], dict[str, Any]()
            for i, other in enumerate(() if owner is c else c.blocks):
                with suppress(AttributeError):
                    value = attrgetter(path + name)(other)
                    words = (
                        f"that of block {i}"
                        if isinstance(value, Mixer | Rope)
                        else value
                    )
                    found[f"{name} is {words}"] = value
            for words, value in (
                found | _others(name, old, hints[name], numbers)
            ).items():
                if value != old:
                    where = (
                        f"model.config.{'' if owner is c else place}{path}{name}".split(
                            "."
                        )
                    )
                    yield words, Mistake(partial(_replaced, path=where, value=value))


def _others(
    name: str, value: Any, hint: Any, numbers: Mapping[str, float]
) -> dict[str, Any]:
    """Values that a fact has if it is left out or misread, by words."""
    found: dict[str, Any] = {f"{name} is left out": None}
    if isinstance(value, bool):
        return {f"{name} is {not value}": not value}
    if isinstance(value, str):
        every = ACTIVATIONS if name == "activation" else get_args(hint)
        return {f"{name} is {x or 'absent'}": x for x in every}
    if isinstance(value, tuple) and all(type(x) is float for x in value):
        for i in range(len(value)):
            found[f"number {i} of {name} is left out (1)"] = (
                *value[:i],
                1.0,
                *value[i + 1 :],
            )
        for i, j in combinations(range(len(value)), 2):
            order = [{i: j, j: i}.get(k, k) for k in range(len(value))]
            found[f"numbers {i} and {j} of {name} are swapped"] = tuple(
                value[k] for k in order
            )
    if type(value) is float:
        found = {f"{name} is left out (1)": 1.0} | found
        for dtype in ("bfloat16", "float16"):
            with np.errstate(over="ignore"):
                found[f"{name} is rounded to {dtype}"] = float(
                    np.array(value).astype(dtype)
                )
        sizes = [
            (k, n)
            for k, n in numbers.items()
            if "scale" in name and k.endswith(SCALED_BY)
        ]
        for (power, x), (k, n) in product(POWERS.items(), sizes):
            how, times = ("is multiplied by", value) if k == "blocks" else ("is", 1.0)
            found[f"{name} {how} {x.format(k)}"] = times * n**power
        for power, x in POWERS.items() if value > 0 and name != "theta" else ():
            found[f"{name} is {x.format(name)}"] = value**power
        for k in ("head_dim", "hidden_size") if name == "theta" else ():
            exponent = numbers["rotary_dim"] / numbers.get(k, np.inf)
            found[f"exponents of frequencies are 2i / {k}"] = value**exponent
            found["exponents of frequencies are i / rotary_dim"] = value**0.5
        near = [10 * value, value / 10, 2 * value, value / 2]
        usual = {"eps": (0.0, 1e-5, 1e-6, 1e-8, 1e-3), "theta": (1e4, 5e5, 1e6)}
        near += next(
            (x for k, x in usual.items() if k in name), (0.0, -value, 10.0, 0.5)
        )
        found |= {f"{name} is {x:.4g}": x for x in near if name != "theta" or x >= 1e4}
    if type(value) is int:
        alike = numbers if name.endswith("dim") else {}
        found |= {f"{name} is {k} ({x})": x for k, x in alike.items() if type(x) is int}
        some = 0, 1, 2, 3, value + 1, value - 1, value * 2, value // 2
        found |= {f"{name} is {x}": x for x in some}
    for first in (0, 1) if name == "slopes" else ():
        powers = (-8 * (i + first) / len(value) for i in range(len(value)))
        found[f"slopes are 2^(-8 (i + {first}) / heads)"] = tuple(
            2.0**x for x in powers
        )
    return found


def _replaced(record: Any, path: list[str], value: Any) -> Any:
    """A record, or a tuple, with another value at the end of a path of names and numbers."""
    if not path:
        return value
    first, rest = path[0], path[1:]
    if isinstance(record, tuple):
        return tuple(
            _replaced(x, rest, value) if f"{i}" == first else x
            for i, x in enumerate(record)
        )
    return replace(record, **{first: _replaced(getattr(record, first), rest, value)})


def of_weights(inputs: StepInputs, block: int) -> Changes:
    """Weights of a block, or of the ends, left out, changed, or in the place of others."""
    model, c = inputs.model, inputs.config
    ends = {**model.head(np.float64), **model.embedding()} if block < 0 else {}
    every: Arrays = ends or model.block(block, np.float64)
    shapes = {k: x.shape for k, x in every.items() if not k.startswith("experts.")}

    for dtype in ("bfloat16", "float16"):
        yield f"weights are rounded to {dtype}", weights(partial(_rounded, dtype))
    small = block >= 0 and sum(prod(x.shape) for x in every.values()) < SMALL_BLOCK
    for i in {block - 1, block + 1} & {*range(c.num_blocks)} if small else ():
        other = dict(model.block(i, np.float64))
        if {k: x.shape for k, x in other.items()} == {
            k: x.shape for k, x in every.items()
        }:
            yield (
                f"weights are those of block {i}",
                weights(partial(lambda x, _: x, other)),
            )
    for a, shape in shapes.items():
        gone = partial(lambda a, w: {k: x for k, x in w.items() if k != a}, a)
        yield f"{a} is left out", weights(gone)
        sort = "of a norm" if "norm" in a else "of one axis" if len(shape) == 1 else ""
        for (words, kind), edit in EDITS.items():
            if kind == sort:
                yield f"{a} {words}", taken({a: a}, edit)
        for b in (x for x in shapes if shapes[x] == shape and x != a):
            yield f"{b} is taken for {a}", taken({a: b})
            yield f"{a} and {b} are swapped", taken({a: b, b: a})
    if block >= 0:
        yield from in_layouts(every, c.blocks[block].mixer, c.head_dim)


def _rounded(dtype: str, w: Arrays) -> Arrays:
    return {
        k: x.astype(dtype).astype(x.dtype) if x.dtype.kind == "f" else x
        for k, x in w.items()
    }


def of_inputs(inputs: StepInputs, step: str) -> Changes:
    """What a point of a block reads: another point there, none, twice or half of it."""
    prefix = step[: step.find(".", 7) + 1]  # of a block
    for short in (x for x in reads_of(step) if prefix + x in inputs.given):
        name, right = prefix + short, inputs.given[prefix + short]
        others = {f"{short} is left out": right * 0, f"{short} counts twice": right * 2}
        for other, x in inputs.given.items():
            if (
                other.startswith(prefix)
                and x.shape == right.shape
                and other not in (name, step)
            ):
                others[f"{other.removeprefix(prefix)} is read in place of {short}"] = x
        for words, value in others.items():
            given = {**inputs.given, name: value}
            yield words, Mistake(partial(_replaced, path=["given"], value=given))


FUSED = (  # weights that files hold in one tensor
    "q_proj k_proj v_proj",
    "q_proj attn_gate",
    "k_proj v_proj",
    "gate_proj up_proj",
    "in_proj_q in_proj_k in_proj_v",
    "in_proj_b in_proj_a",
    "in_proj_z in_proj_x in_proj_bc",
)


def in_layouts(every: Arrays, mixer: Any, head_dim: int) -> Changes:
    """Rows of weights in the order of another layout: of one weight, and of several in one.

    A porter reads q, k and v of a fused tensor as three thirds, or for each head in turn; gate and
    up as halves, or row by row; heads as [head, channel], or [channel, head]; the channels of a
    head in the order that the other pairs of a rotation need.

    Args:
        every: The block's weights by our names.
        mixer: The facts of its mixer, whose numbers are tried as numbers of heads and groups.
        head_dim: Channels of a head.
    """
    counts = {x for x in vars(mixer).values() if type(x) is int and x > 1} | {2, 3}

    for name in (x for x in every if x.endswith(("proj.weight", "gate.weight"))):
        rows, parts = (
            len(every[name]),
            counts if not name.startswith("experts.") else (),
        )
        both = {x: x for x in (name, name.replace(".weight", ".bias")) if x in every}
        for n in (x for x in sorted(parts) if rows % x == 0):
            words = f"the {n} parts of {name} are in another order"
            yield words, taken(both, partial(np.roll, shift=rows // n, axis=0))
        for n in (2, head_dim // 2) if parts and rows % head_dim == 0 else ():
            words = f"rows of {name} are permuted in each head, as for other pairs of a rotation"
            yield words, taken(both, partial(_in_each_head, head_dim, n))
    prefixes = dict.fromkeys(k.rpartition(".")[0].rpartition(".")[0] for k in every)
    for names in (x.split() for x in FUSED):
        groups = [tuple(f"{p}.{x}".lstrip(".") for x in names) for p in prefixes]
        if groups := [x for x in groups if all(f"{y}.weight" in every for y in x)]:
            sizes = [len(every[f"{x}.weight"]) for x in groups[0]]
            runs = {n for n in (1, *counts, *sizes) if all(y % n == 0 for y in sizes)}
            orders = [(n, tuple(range(len(names)))) for n in sorted(runs)]
            orders += [(1, x) for x in permutations(range(len(names)))][1:]
            for one, other in permutations(orders, 2):
                if one[0] == 1 or other[0] == 1:
                    how = f"{_in_words(names, *one)}, and is read as {_in_words(names, *other)}"
                    yield (
                        f"one tensor holds {how}",
                        weights(partial(_misread, groups, one, other)),
                    )


def _in_each_head(head_dim: int, n: int, x: Array) -> Array:
    return x.reshape(-1, n, head_dim // n, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def _in_words(names: list[str], runs: int, order: tuple[int, ...]) -> str:
    text = ", ".join(names[i] for i in order)
    return text if runs == 1 else f"{text} in {runs} alternating runs"


def _rows(sizes: list[int], runs: int, order: tuple[int, ...]) -> Array:
    """Numbers of the rows of all parts, in the order of a tensor in which their runs alternate."""
    starts = np.cumsum([0, *sizes])
    return np.concatenate(
        [
            starts[i] + np.arange(j * sizes[i] // runs, (j + 1) * sizes[i] // runs)
            for j in range(runs)
            for i in order
        ]
    )


def _misread(groups: list[tuple[str, ...]], one: Any, other: Any, w: Arrays) -> Arrays:
    """Weights of a fused tensor that is written in one order and read in another.

    Args:
        groups: Names of the parts of each fused tensor.
        one: Runs of each part that alternate, and the order of the parts, as it is written.
        other: The same, as it is read.
        w: The block's weights by our names.
    """
    new = dict(w)
    for keys in [
        [f"{x}.{kind}" for x in names]
        for names in groups
        for kind in ("weight", "bias")
    ]:
        if all(key in w for key in keys):
            sizes, rows = (
                [len(w[key]) for key in keys],
                np.concatenate([w[key] for key in keys]),
            )
            rows[_rows(sizes, *other)] = rows[_rows(sizes, *one)]
            new.update(zip(keys, np.split(rows, np.cumsum(sizes)[:-1]), strict=True))
    return new
