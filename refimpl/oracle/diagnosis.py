"""Why a step is wrong: the mistake that gives the candidate's numbers, or where these are wrong."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import chain
from math import inf, isclose
from time import process_time
from typing import Any, get_args, get_type_hints
from warnings import catch_warnings

import numpy as np

from refimpl.model.config import Config, Mixer
from refimpl.model.experts import unobserved
from refimpl.model.ops import ACTIVATIONS, Array
from refimpl.model.position_tables import Rope
from refimpl.oracle import dense_steps
from refimpl.oracle.dense_steps import StepInputs
from refimpl.oracle.measures import FAULTS, StepResult, error_of, reads_of, stage_of
from refimpl.oracle.mutations import SyntaxTree, called, numbers_like
from refimpl.oracle.rounding import ChangedModel
from refimpl.oracle.steps import computed_again
from refimpl.oracle.truth import Truth
from refimpl.oracle.variants import VARIANTS, ByName, Mistake, in_layouts, swap, weights

Changes = Iterator[tuple[str, Mistake]]
"""With words that follow "refimpl's numbers if"."""
EDITS: Mapping[tuple[str, str], Callable[[Array], Array]] = {  # of a kind of weight
    ("is transposed", ""): lambda x: x.T, ("is reversed", ""): lambda x: x[..., ::-1],
    ("is taken plus 1", "of a norm"): lambda x: x + 1, ("is negated", "of one axis"): lambda x: -x,
    ("is taken minus 1", "of a norm"): lambda x: x - 1,
    ("is left out (0)", "of one axis"): lambda x: x * 0,
}  # fmt: skip
METHOD = ("method", "pruners", "bases", "allocation", "scoring", "pruning", "evaluation")
MODEL = ("model", "weight", "state", "config")  # modules that compute nothing
MACHINERY = (
    "StepInputs", "Request", "Option", "Base", "Chosen", "Signal", "computed_again",
    "_factor_in_place",
)  # fmt: skip
STRUCTURE = ("num_experts", "blocks", "experts", "alibi", "mixer", "groups", "groups_kept")
POWERS = {
    -0.5: "1 / the root of {}", 1.0: "{}", -1.0: "1 / {}", 0.5: "the root of {}",
    2.0: "the square of {}", -2.0: "1 / the square of {}",
}  # fmt: skip
CLEAR = 1e-3  # share of an error that an explanation may leave
TIME_LIMIT = 2.0  # of processor time, after which no other expressions are tried


def diagnosis(truth: Truth, result: StepResult) -> str:
    """What gives the candidate's numbers, or where these are wrong."""
    if known := [text for word, text in FAULTS.items() if word in result.fault.split()]:
        return known[0]
    candidate, best, words = truth.actual[result.step], inf, ""
    least = distance(result.step, candidate, truth.values[result.step])
    for text, value in alternatives(truth, result.step):
        error = distance(result.step, candidate, value)
        allowed = result.tolerance or least / 100
        if error <= allowed and error < min(least / 8, best / 2):
            best, words = error, text
            if error <= max(CLEAR * least, result.own):
                break
    if words:
        to = f"to {best:.0e}" if best else "exactly"
        return f"your numbers equal refimpl's {to} if {words}"
    text = where_wrong(truth, result)
    if truth.computed_in == "float64" and 1e-9 < least < 1e-5:
        text += "; the error has the size of float32 in some step"
    return text


def distance(step: str, candidate: Array, value: Array) -> float:
    """The error of a candidate; infinite for a fault."""
    error, _, fault = error_of(step, candidate, value)
    return inf if fault else error


def alternatives(truth: Truth, step: str) -> Iterator[tuple[str, Array]]:
    """Other numbers for a step, with words that follow "if".

    What is named comes first, as of equal numbers the first words count: mistakes of the table,
    other steps' numbers, the model's facts and weights, other expressions in the functions that
    compute the step, and last a factor without a cause.
    """
    forward = stage_of(step) == "forward"
    clean, every = {} if forward else truth.clean, {**truth.values, **truth.given}
    for x in every.values():
        x.flags.writeable = False
    model = truth.model.as_kind(ChangedModel)  # whose weights are read once
    inputs = replace(truth, model=model, given=every, clean=clean, wanted={step})
    named = [(words, x) for k, words, x in VARIANTS if fnmatchcase(step, k)]
    yield from attempts(inputs, step, named)
    yield from simple(truth, step)
    block = int(step.split(".")[1]) if step.startswith("blocks.") else -1
    numbers = numbers_of(inputs, block, forward)
    if forward:
        facts = of_facts(inputs, block, numbers)
        for some in (of_inputs(inputs, step), facts, of_weights(inputs, block)):
            yield from attempts(inputs, step, some)
    yield from mutated(inputs, step, numbers)
    yield from multiples(truth, step, numbers)


def attempts(
    inputs: Truth, step: str, mistakes: Iterable[tuple[str, Mistake]]
) -> Iterator[tuple[str, Array]]:
    """The step with one thing changed each time, where that is possible."""
    once = Mistake()
    if stage_of(step) != "forward":  # where states travel often through the same blocks
        assert isinstance(inputs.model, ChangedModel)
        once = swap(dense_steps, "block", partial(remembered, inputs.model.held))
    for words, change in mistakes:
        fresh = replace(
            inputs,
            values={},
            squares=[],
            missed=set(),
            missing={},
        )
        with suppress(Exception), np.errstate(all="ignore"), catch_warnings(action="ignore"):
            with (once + change).made(fresh) as other:
                value = np.asarray(computed_again(other, step))
            yield words, value


def remembered(known: dict[Any, Any], block: Any) -> Any:
    """The blocks of the model, which compute each state once.

    Experiments send the same states through the same blocks again where the mistake is in what is
    measured of them. Blocks that are observed are computed anew.
    """

    def function(state: Any, weights: Any, place: Any, config: Config) -> Any:
        if place.observe is not unobserved:
            return block(state, weights, place, config)
        arrays = [weights[x] for x in weights]
        key = tuple(map(id, arrays)), *(x.tobytes() for x in state.arrays)
        if key not in known:
            known[key] = block(state, weights, place, config), arrays
        found = known[key][0]
        return found.with_stream(found.stream.copy())

    return function


def mutated(inputs: Truth, step: str, numbers: Mapping[str, float]) -> Iterator[tuple[str, Array]]:
    """The step with another expression in a function of refimpl, the likely ones first."""
    forward, end = stage_of(step) == "forward", process_time() + TIME_LIMIT

    def belongs(module: str, name: str) -> bool:
        package, last = module.split(".")[1], module.rpartition(".")[2]
        if name.split(".")[0] in MACHINERY:
            return False
        if package == "model":
            return last not in MODEL if forward else last == "stream"
        return not forward and (package in METHOD or last in ("steps", "dense_steps"))

    functions = called(lambda: [*attempts(inputs, step, [("", Mistake())])], belongs, step)
    error = distance(step, inputs.actual[step], inputs.values[step])
    narrow = inputs.computed_in == "float32" and 1e-5 < error < 3e-2
    if narrow and forward:
        inputs = replace(inputs, dtype=np.float32)
    mutants = chain.from_iterable(SyntaxTree(x, numbers, narrow).mutants() for x in functions)
    for x in sorted(mutants, key=lambda x: x.rank):
        if process_time() > end:
            return
        change = swap(x.function, "__code__", x.code)
        for _, value in attempts(inputs, step, [("", change)]):
            yield x.words, value


def simple(truth: Truth, step: str) -> Iterator[tuple[str, Array]]:
    """Numbers that need no computation: other steps', and the same in another order."""
    right = truth.values[step]
    for name, x in truth.case.expected.items():
        if name != step and x.shape == right.shape and x.dtype == right.dtype:
            dense = name.startswith("pruned.blocks.") and "pruned" not in step
            yield f"they are those of {name}" + ", of the dense model" * dense, x
    if right.dtype == np.uint8:
        yield "decisions are inverted", ~right
        lowest = np.packbits(np.unpackbits(right, axis=-1), axis=-1, bitorder="little")
        yield "bits are packed from the lowest", lowest
    if right.dtype.kind != "f" or right.size == 1:
        return
    for axis, name in enumerate(axes_of(right)):
        yield f"{name} are one late", np.roll(right, 1, axis)
        yield f"{name} are one early", np.roll(right, -1, axis)
        yield f"{name} are in reverse order", np.flip(right, axis)


def numbers_of(inputs: StepInputs, block: int, forward: bool = True) -> dict[str, float]:
    """The model's numbers, and those of the case, by name."""
    c, (sequences, tokens) = inputs.model.config, inputs.ids.shape
    kind, found = c.blocks[block], dict[str, float]({"blocks": c.num_blocks} if forward else {})
    records = (kind.mixer, c, kind, kind.rope, c.experts) if forward else ()
    for record in records:
        for name, x in vars(record).items() if record is not None else ():
            if type(x) in (int, float) and x not in (0, 1):
                found.setdefault(name, x)
    if {"plain_dim", "rotary_dim"} <= found.keys():
        found["channels of a query"] = found["plain_dim"] + found["rotary_dim"]
    return found | {"tokens": tokens, "sequences": sequences}


def multiples(truth: Truth, step: str, numbers: Mapping[str, float]) -> Iterator[tuple[str, Array]]:
    """Multiples by one number, which is a power of a known one or not."""
    right, mine = truth.values[step], truth.actual[step]
    if right.dtype.kind != "f" or right.size == 1:
        return
    with np.errstate(all="ignore"):
        factor = float(np.vdot(right, mine.astype(np.float64)) / np.vdot(right, right))
    yield f"they are multiplied by {factor:.6g}{power_of(factor, numbers)}", right * factor


def power_of(factor: float, numbers: Mapping[str, float]) -> str:
    """A number as a power of one of the model's, in words, or nothing."""
    every = {**numbers, "2": 2.0, "10": 10.0, "e": np.e}
    for power, text in POWERS.items():
        for name, x in every.items():
            if x > 0 and isclose(abs(factor), x**power, rel_tol=1e-5):
                return f", {'minus ' * (factor < 0)}{text.format(name)}"
    return ""


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


def of_facts(inputs: StepInputs, block: int, numbers: Mapping[str, float]) -> Changes:
    """Other values of the model's facts, of its mixture, and of one block's kind and records."""
    c = inputs.model.config
    kind = c.blocks[block]
    records: list[tuple[Any, str]] = [
        (c, ""),
        (c, "experts"),
        (c, "alibi"),
        (kind, ""),
    ]
    for owner, path in (*records, (kind, "mixer"), (kind, "rope"), (kind, "temperature")):
        record = getattr(owner, path) if path else owner
        hints = get_type_hints(type(record)) if record is not None else {}
        for name in (x for x in hints if x in vars(record) and x not in STRUCTURE):
            old, kinds = vars(record)[name], () if owner is c else c.blocks
            same = [getattr(getattr(x, path) if path else x, name, old) for x in kinds]
            found = {f"{name} is {x}": x for x in same if not isinstance(x, Mixer | Rope)}
            for words, value in (found | _others(name, old, hints[name], numbers)).items():
                if value != old:
                    yield words, Mistake(partial(_with_fact, block, owner is c, path, name, value))


def _others(name: str, value: Any, hint: Any, numbers: Mapping[str, float]) -> dict[str, Any]:
    """Values that a fact has if it is left out or misread, by words."""
    found: dict[str, Any] = {f"{name} is left out": None}
    if isinstance(value, bool):
        return {f"{name} is {not value}": not value}
    if isinstance(value, str):
        every = ACTIVATIONS if name == "activation" else get_args(hint)
        return {f"{name} is {x or 'absent'}": x for x in every}
    if isinstance(value, float):
        rounded = {x: float(np.array(value).astype(x)) for x in ("bfloat16", "float16")}
        found = {f"{name} is left out (1)": 1.0} | found
        found |= {f"{name} is rounded to {k}": x for k, x in rounded.items()}
        for k, n in numbers.items() if "scale" in name else ():
            found |= {f"{name} is {x.format(k)}": n**power for power, x in POWERS.items() if n > 0}
    if isinstance(value, int | float):
        near = numbers_like(value, numbers if name.endswith("dim") else {})
        found |= {f"{name} is {k}": x for k, x in near.items() if name != "theta" or x >= 1e4}
    for first in (0, 1) if name == "slopes" else ():
        powers = (-8 * (i + first) / len(value) for i in range(len(value)))
        found[f"slopes are 2^(-8 (i + {first}) / heads)"] = tuple(2.0**x for x in powers)
    return found


def _with_fact(
    block: int, of_model: bool, path: str, name: str, value: Any, inputs: StepInputs
) -> StepInputs:
    """The computation where a record of the model, or of a block, has another value."""
    c = inputs.model.config
    owner: Any = c if of_model else c.blocks[block]
    new = {path: replace(getattr(owner, path), **{name: value})} if path else {name: value}
    owner = replace(owner, **new)
    if not of_model:
        i = block % c.num_blocks
        owner = replace(c, blocks=(*c.blocks[:i], owner, *c.blocks[i + 1 :]))
    return replace(inputs, model=replace(inputs.model, config=owner))


def of_weights(inputs: StepInputs, block: int) -> Changes:
    """Weights of a block, or of the ends, left out, changed, or in the place of others."""
    model, c = inputs.model, inputs.model.config
    ends = {**model.head(np.float64), **model.embedding()} if block < 0 else {}
    every: ByName = ends or model.block(block, np.float64)
    shapes = {k: x.shape for k, x in every.items() if not k.startswith("experts.")}

    def changed(new: Callable[[ByName], ByName]) -> Mistake:
        return weights(lambda w: {**w, **new(w)})

    for a, shape in shapes.items():
        gone = partial(lambda a, w: {k: x for k, x in w.items() if k != a}, a)
        yield f"{a} is left out", weights(gone)
        sort = "of a norm" if "norm" in a else "of one axis" if len(shape) == 1 else ""
        for (words, kind), edit in EDITS.items():
            if kind == sort:
                yield f"{a} {words}", changed(partial(lambda a, f, w: {a: f(w[a])}, a, edit))
        for b in (x for x in shapes if shapes[x] == shape and x != a):
            yield f"{b} is taken for {a}", changed(partial(lambda a, b, w: {a: w[b]}, a, b))
            pair = changed(partial(lambda a, b, w: {a: w[b], b: w[a]}, a, b))
            yield f"{a} and {b} are swapped", pair
    if block >= 0:
        yield from in_layouts(every, c.blocks[block].mixer, c.head_dim)


def of_inputs(inputs: StepInputs, step: str) -> Changes:
    """What a point of a block reads: another point there, none, twice or half of it."""
    prefix = step[: step.index(".", 7) + 1] if step.startswith("blocks.") else ""
    for name in [x for x in (prefix + y for y in reads_of(step)) if x in inputs.given]:
        right, short = inputs.given[name], name.removeprefix(prefix)
        others = {
            f"{short} is left out": right * 0,
            f"{short} counts twice": right * 2,
        }
        for other, x in inputs.given.items():
            if other.startswith(prefix) and x.shape == right.shape and other not in (name, step):
                others[f"{other.removeprefix(prefix)} is read in place of {short}"] = x
        for words, value in others.items():
            yield words, Mistake(partial(_with_given, name, value))


def _with_given(name: str, value: Array, inputs: StepInputs) -> StepInputs:
    return replace(inputs, given={**inputs.given, name: value})
