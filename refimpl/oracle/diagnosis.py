"""Why a step is wrong: the mistake that gives the candidate's numbers, or where these are wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from functools import partial
from inspect import signature
from itertools import chain, combinations
from math import inf
from typing import Any
from warnings import catch_warnings

import numpy as np

from refimpl.model.config import BlockKind, Config
from refimpl.model.ops import ACTIVATIONS, Array
from refimpl.oracle.dense_steps import StepInputs
from refimpl.oracle.measures import FAULTS, StepResult, error_of, reads_of, stage_of
from refimpl.oracle.steps import computed_again
from refimpl.oracle.truth import Truth
from refimpl.oracle.variants import CALLED, VARIANTS, ByName, Calls, Edit, Mistake, swap, weights

Changes = Iterator[tuple[str, Mistake]]
"""With words that follow "refimpl's numbers if"."""
EDITS: Mapping[str, Edit] = {  # of an argument, or a weight
    "is negated": lambda x: -x, "is 1": lambda x: x * 0 + 1, "is 0": lambda x: x * 0,
    "is squared": lambda x: x * x, "is its root": np.sqrt, "is doubled": lambda x: x * 2,
    "is reversed": lambda x: x[..., ::-1],
    "is one token late": lambda x: np.roll(x, 1, axis=-2), "is transposed": lambda x: x.T,
    "is taken plus 1": lambda x: x + 1, "is taken minus 1": lambda x: x - 1,
}  # fmt: skip
_WORDS = (
    *ACTIVATIONS,
    "rms",
    "layer",
    "default",
    "linear",
    "softmax",
    "sigmoid",
    "sparsemixer",
    "",
    "before",
    "after",
)
CLEAR = 1e-3  # share of an error that an explanation may leave


def diagnosis(truth: Truth, result: StepResult) -> str:
    """What gives the candidate's numbers, or where these are wrong."""
    if known := [text for word, text in FAULTS.items() if word in result.fault.split()]:
        return known[0]
    candidate, best, words = truth.actual[result.step], inf, ""
    least = result.error if np.isfinite(result.error) else 1.0
    for text, value in alternatives(truth, result.step):
        error, _, fault = error_of(result.step, candidate, value)
        allowed = result.tolerance or least / 100
        if not fault and error <= allowed and error < min(least / 3, best / 2):
            best, words = error, text
            if error <= CLEAR * least:
                break
    if words:
        to = f"to {best:.0e}" if best else "exactly"
        return f"your numbers equal refimpl's {to} if {words}"
    sizes = {"float64": ("float32", 1e-9, 1e-5), "float32": ("16 bits, or TF32,", 1e-4, 2e-2)}
    narrow, low, high = sizes.get(truth.computed_in, ("", inf, 0.0))
    hint = f"; the error has the size of {narrow} in some step" if low < least < high else ""
    return where_wrong(truth, result) + hint


def alternatives(truth: Truth, step: str) -> Iterator[tuple[str, Array]]:
    """Other numbers for a step, with words that follow "if"."""
    forward = (stage := stage_of(step)) == "forward"
    clean, every = {} if forward else truth.clean, {**truth.values, **truth.given}
    inputs = replace(truth, given=every, clean=clean, wanted={step})
    named = [x for k, x in VARIANTS.items() if fnmatchcase(step, k)]
    yield from attempts(inputs, step, chain.from_iterable(x.items() for x in named))
    # What is named comes first: of equal numbers the first words count.
    yield from simple(truth, step)
    if forward:
        block = int(step.split(".")[1]) if step.startswith("blocks.") else -1
        for some in (of_inputs(inputs, step), of_facts(inputs, block), of_weights(inputs, block)):
            yield from attempts(inputs, step, some)
    called = dict[tuple[int, str], tuple[object, str]]()
    for _ in attempts(inputs, step, [("", noted(CALLED.get(stage, ()), called))]):
        yield from attempts(inputs, step, of_functions(called.values()))


def attempts(
    inputs: Truth, step: str, mistakes: Iterable[tuple[str, Mistake]]
) -> Iterator[tuple[str, Array]]:
    """The step with one thing changed each time, where that is possible."""
    for words, change in mistakes:
        fresh = replace(inputs, values={}, squares=[], missed=set(), missing={})
        with suppress(Exception), np.errstate(all="ignore"), catch_warnings(action="ignore"):
            with change.made(fresh) as other:
                value = np.asarray(computed_again(other, step))
            yield words, value


def simple(truth: Truth, step: str) -> Iterator[tuple[str, Array]]:
    """Numbers that need no computation: multiples, other steps', and the same in another order."""
    right, mine = truth.values[step], truth.actual[step]
    for name, x in truth.case.expected.items():
        if name != step and x.shape == right.shape and x.dtype == right.dtype:
            yield f"they are those of {name}", x
    if right.dtype == np.uint8:
        yield "decisions are inverted", ~right
        lowest = np.packbits(np.unpackbits(right, axis=-1), axis=-1, bitorder="little")
        yield "bits are packed from the lowest", lowest
    if right.dtype.kind != "f" or right.size == 1:
        return
    with np.errstate(all="ignore"):
        factor = float(np.vdot(right, mine.astype(np.float64)) / np.vdot(right, right))
        offset = float(np.mean(mine.astype(np.float64) - right))
    yield f"they are multiplied by {factor:.6g}", right * factor
    if stage_of(step) != "forward":
        yield f"{offset:.6g} is added", right + offset
    for axis, name in enumerate(axes_of(right)):
        yield f"{name} are one late", np.roll(right, 1, axis)
        yield f"{name} are one early", np.roll(right, -1, axis)
        yield f"{name} are in reverse order", np.flip(right, axis)


def axes_of(x: Array) -> tuple[str, ...]:
    """Names of an array's axes."""
    return {
        1: ("blocks",),
        2: ("rows", "columns"),
        3: ("sequences", "tokens", "channels"),
        4: ("sequences", "heads", "tokens", "channels"),
    }[x.ndim]


def where_wrong(truth: Truth, result: StepResult) -> str:
    """Which parts of a step are wrong, along each axis, and which are right."""
    right, mine = truth.values[result.step], truth.actual[result.step]
    if mine.shape != right.shape or mine.dtype.kind not in "fiubV":
        return ""
    with np.errstate(all="ignore"):
        if right.dtype == np.uint8:
            wrong = np.unpackbits(right, -1) != np.unpackbits(mine.astype(np.uint8), -1)
        else:
            off = np.abs(mine.astype(np.float64) - right)
            size = np.sqrt(np.mean(np.square(right), -1, keepdims=True, dtype=np.float64))
            wrong = ~(off <= result.tolerance * np.maximum(size, np.abs(right)))
    parts = []
    for axis, name in enumerate(axes_of(right)):
        hit = wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis))
        if hit.any() and not hit.all():
            parts.append(f"{name} {spans(np.flatnonzero(hit))} of {len(hit)}")
    return "wrong: " + (", ".join(parts) or f"{wrong.mean():.0%} of all numbers, in every part")


def spans(indices: Array) -> str:
    """Indices in words: 0, 4 to 11."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    texts = [f"{x[0]}" if len(x) == 1 else f"{x[0]} to {x[-1]}" for x in runs]
    return ", ".join([*texts[:4], *["..."] * (len(texts) > 4)])


def of_functions(functions: Calls) -> Changes:
    """Functions left out; their arguments edited, and swapped in pairs."""
    for owner, name in functions:
        yield f"{name} is left out", swap(owner, name, lambda _: lambda x, *_, **__: x)
        every = [*signature(vars(owner)[name]).parameters]
        for i, argument in enumerate(every):
            for words, edit in EDITS.items():
                new = partial(_edited, i, i, edit)
                yield f"in {name}, {argument} {words}", swap(owner, name, new)
        for i, j in combinations(range(len(every)), 2):
            words = f"in {name}, {every[i]} and {every[j]} are swapped"
            yield words, swap(owner, name, partial(_edited, i, j, lambda x: x))


def _edited(i: int, j: int, edit: Edit, old: Any) -> Any:
    """A function of edited or exchanged arguments, by their place."""

    def function(*x: Any, **more: Any) -> Any:
        other = [*x]
        other[i], other[j] = edit(x[j]), edit(x[i])
        return old(*other, **more)

    return function


def noted(functions: Calls, called: dict[tuple[int, str], tuple[Any, str]]) -> Mistake:
    """Nothing changed; the functions that are called are noted."""

    def note(owner: Any, name: str, old: Any) -> Any:
        def function(*x: Any, **more: Any) -> Any:
            called[id(owner), name] = owner, name
            return old(*x, **more)

        return function

    return Mistake(swaps=tuple((x, name, partial(note, x, name)) for x, name in functions))


def of_facts(inputs: StepInputs, block: int) -> Changes:
    """Other values of the model's facts, of its mixture, and of one block's kind and records."""
    c = inputs.model.config
    kind, h, d = c.blocks[block], c.head_dim, c.hidden_size
    likely: Mapping[str, tuple[Any, ...]] = {  # values that other models have
        "norm_eps": (0.0, 1e-5, 1e-6, 1e-8), "theta": (1e4, 1e5, 5e5, 1e6),
        "attention_scale": (h**-0.5, 1 / h, d**-0.5), "embed_scale": (d**0.5,),
        "attn_soft_cap": (c.final_soft_cap,), "final_soft_cap": (c.attn_soft_cap,),
        "position_offset": (0, 1, 2), "rotary_dim": (h, h // 2, h // 4), "qkv_limit": (),
        **{x: (getattr(c.blocks[0], x), getattr(c.blocks[-1], x)) for x in ("rope", "window")},
    }  # fmt: skip
    for record in (c, kind, kind.mixer, kind.rope, c.experts):
        facts = [x.name for x in fields(record)] if record is not None else []
        for name in facts:
            old = getattr(record, name)
            for value in dict.fromkeys((*likely.get(name, ()), *_others(old))):
                if value != old:
                    text = f"{value:.4g}" if isinstance(value, float) else value
                    new = partial(_with_fact, block, record, name, value)
                    yield f"{name} is {text}", Mistake(new)


def _others(value: Any) -> tuple[Any, ...]:
    """Values that a fact has if it is left out or misread."""
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, str):
        return _WORDS
    if isinstance(value, int):
        return value - 1, value + 1, 0, 1, None
    if isinstance(value, float):
        return (1.0, 0.0, value**2, value**0.5, 1 / value if value else inf, None)
    if isinstance(value, tuple) and all(isinstance(x, float) for x in value):
        return (1.0,) * len(value), value[::-1], ()
    return (None, ())


def _with_fact(block: int, old: Any, name: str, value: Any, inputs: StepInputs) -> StepInputs:
    """The computation where a record of the model, or of a block, has another value."""
    new, c = replace(old, **{name: value}), inputs.model.config
    if old is c.experts:
        new = replace(c, experts=new)
    elif not isinstance(new, Config):
        kind = c.blocks[block]
        place = "rope" if old is kind.rope else "mixer"
        new = new if isinstance(new, BlockKind) else replace(kind, **{place: new})
        new = replace(c, blocks=(*c.blocks[:block], new, *c.blocks[block + 1 :]))
    return replace(inputs, model=replace(inputs.model, config=new))


def of_weights(inputs: StepInputs, block: int) -> Changes:
    """Weights of a block, or of the ends, left out, changed, or in the place of others."""
    model = inputs.model
    ends = {**model.head(np.float64), **model.embedding()} if block < 0 else {}
    every: ByName = ends or model.block(block, np.float64)
    shapes = {k: x.shape for k, x in every.items() if not k.startswith("experts.")}

    def changed(new: Callable[[ByName], ByName]) -> Mistake:
        return weights(lambda w: {**w, **new(w)})

    for a, shape in shapes.items():
        gone = partial(lambda a, w: {k: x for k, x in w.items() if k != a}, a)
        yield f"{a} is left out", weights(gone)
        for words, edit in EDITS.items():
            yield f"{a} {words}", changed(partial(lambda a, f, w: {a: f(w[a])}, a, edit))
        for b in (x for x in shapes if shapes[x] == shape and x != a):
            yield f"{b} is taken for {a}", changed(partial(lambda a, b, w: {a: w[b]}, a, b))
            pair = changed(partial(lambda a, b, w: {a: w[b], b: w[a]}, a, b))
            yield f"{a} and {b} are swapped", pair


def of_inputs(inputs: StepInputs, step: str) -> Changes:
    """What a point of a block reads: another point there, none, twice or half of it."""
    prefix = step[: step.index(".", 7) + 1] if step.startswith("blocks.") else ""
    for name in [x for x in (prefix + y for y in reads_of(step)) if x in inputs.given]:
        right, short = inputs.given[name], name.removeprefix(prefix)
        others = {f"{short} is left out": right * 0, f"{short} counts twice": right * 2}
        for other, x in inputs.given.items():
            if other.startswith(prefix) and x.shape == right.shape and other not in (name, step):
                others[f"{other.removeprefix(prefix)} is read in place of {short}"] = x
        for words, value in others.items():
            yield words, Mistake(partial(_with_given, name, value))


def _with_given(name: str, value: Array, inputs: StepInputs) -> StepInputs:
    return replace(inputs, given={**inputs.given, name: value})
