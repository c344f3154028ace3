"""Mistakes that people make, by kind of step: what is changed, in words that follow "if".

Others follow from refimpl's own source (`mutations`), its facts and its weights (`diagnosis`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import permutations
from types import ModuleType
from typing import Any

import numpy as np

from refimpl.model.ops import Array
from refimpl.oracle.dense_steps import StepInputs
from refimpl.oracle.mutations import MISTAKES, function_named, reworded

ByName = Mapping[str, Array]
Edit = Callable[[Any], Any]


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
        old = [(owner, name, getattr(owner, name)) for owner, name, _ in self.swaps]
        try:
            for owner, name, wrap in self.swaps:
                _put(owner, name, wrap(getattr(owner, name)))
            yield self.edit(inputs)
        finally:
            for right in reversed(old):
                _put(*right)

    def __add__(self, other: "Mistake") -> "Mistake":
        return Mistake(lambda x: other.edit(self.edit(x)), self.swaps + other.swaps)


def _put(owner: Any, name: str, value: Any) -> None:
    put = setattr if isinstance(owner, ModuleType) else object.__setattr__
    put(owner, name, value)


def swap(owner: Any, name: str, wrap: Edit) -> Mistake:
    """Another function in place of one."""
    return Mistake(swaps=((owner, name, wrap),))


def reworded_at(place: str, *edits: str) -> Mistake:
    """Another text in a function of refimpl: each first edit is replaced by the second one."""
    module, _, name = f"refimpl.{place}".partition(":")
    import_module(module)
    function = function_named(module, name)
    return swap(function, "__code__", lambda _: reworded(function, edits))


def weights(change: Callable[[ByName], ByName]) -> Mistake:
    """Other weights, by our names without that of the block."""
    return Mistake(lambda x: replace(x, model=replace(x.model, change=change)))  # type: ignore[call-arg]


def tied(inputs: StepInputs) -> StepInputs:
    """The embeddings in place of the head's weight."""
    rows = np.arange(inputs.model.config.vocab_size)
    embed = np.take(inputs.model.embedding()["embed.weight"], rows, axis=0)
    new = weights(lambda w: {**w, "lm_head.weight": embed} if "lm_head.weight" in w else w)
    return new.edit(inputs)


def _variants() -> Iterator[tuple[str, str, Mistake]]:
    """The mistakes of `mistakes.toml`, and those that no other text of a function makes.

    Yields:
        Pattern of the names of steps, words that follow "if", and the mistake.
    """
    yield "logits", "lm_head is tied to the embeddings", Mistake(tied)
    for patterns, places in MISTAKES.items():
        for place, texts in places.items():
            for words, edits in texts.items():
                yield from ((x, words, reworded_at(place, *edits)) for x in patterns.split())


VARIANTS = [*_variants()]  # patterns of names of steps, words, and the mistake


FUSED = (  # weights that files hold in one tensor
    "q_proj k_proj v_proj", "q_proj attn_gate", "k_proj v_proj", "gate_proj up_proj",
    "in_proj_q in_proj_k in_proj_v", "in_proj_b in_proj_a", "in_proj_z in_proj_x in_proj_bc",
)  # fmt: skip


def in_layouts(every: ByName, mixer: Any, head_dim: int) -> Iterator[tuple[str, Mistake]]:
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

    def changed(name: str, new: Edit) -> Mistake:
        names = name, name.replace(".weight", ".bias")
        return weights(lambda w: {k: new(x) if k in names else x for k, x in w.items()})

    for name in (x for x in every if x.endswith(("proj.weight", "gate.weight"))):
        rows, parts = len(every[name]), counts if not name.startswith("experts.") else ()
        for n in (x for x in sorted(parts) if rows % x == 0):
            for k in (n, rows // n):
                words = f"rows of {name} are not [{k}, {rows // k}], but transposed"
                yield words, changed(name, partial(_transposed, n=k))
            words = f"the {n} parts of {name} are in another order"
            yield words, changed(name, partial(np.roll, shift=rows // n, axis=0))
        for n in (2, head_dim // 2) if parts and rows % head_dim == 0 else ():
            words = f"rows of {name} are permuted in each head, as for other pairs of a rotation"
            yield words, changed(name, partial(_in_each_head, head_dim, n))
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
                    yield f"one tensor holds {how}", weights(partial(_misread, groups, one, other))


def _transposed(x: Array, n: int) -> Array:
    return x.reshape(n, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)


def _in_each_head(head_dim: int, n: int, x: Array) -> Array:
    return np.concatenate([_transposed(y, n) for y in np.split(x, len(x) // head_dim)])


def _in_words(names: list[str], runs: int, order: tuple[int, ...]) -> str:
    text = ", ".join(names[i] for i in order)
    return text if runs == 1 else f"{text} in {runs} alternating runs"


def _rows(sizes: list[int], runs: int, order: tuple[int, ...]) -> Array:
    """Numbers of the rows of all parts, in the order of a tensor in which their runs alternate."""
    starts = np.cumsum([0, *sizes])
    return np.concatenate([
        starts[i] + np.arange(j * sizes[i] // runs, (j + 1) * sizes[i] // runs)
        for j in range(runs) for i in order
    ])  # fmt: skip


def _misread(groups: list[tuple[str, ...]], one: Any, other: Any, w: ByName) -> ByName:
    """Weights of a fused tensor that is written in one order and read in another.

    Args:
        groups: Names of the parts of each fused tensor.
        one: Runs of each part that alternate, and the order of the parts, as it is written.
        other: The same, as it is read.
        w: The block's weights by our names.
    """
    new = dict(w)
    for names in groups:
        for kind in ("weight", "bias"):
            parts = [w[f"{x}.{kind}"] for x in names if f"{x}.{kind}" in w]
            if len(parts) == len(names):
                sizes, rows = [len(x) for x in parts], np.concatenate(parts)
                rows[_rows(sizes, *other)] = rows[_rows(sizes, *one)]
                cut = np.split(rows, np.cumsum(sizes)[:-1])
                new.update(zip((f"{x}.{kind}" for x in names), cut, strict=True))
    return new
