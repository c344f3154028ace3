"""Why a step is wrong: the mistake that gives the candidate's numbers, or where these are wrong."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import product
from math import inf, isclose
from time import process_time
from typing import Any
from warnings import catch_warnings

import numpy as np

from refimpl.model.ops import Array
from refimpl.oracle import variants
from refimpl.oracle.dense_steps import NamedArrays
from refimpl.oracle.measures import FAULTS, StepResult, error_of, stage_of
from refimpl.oracle.mutations import function_at, slips
from refimpl.oracle.rounding import ChangedModel
from refimpl.oracle.steps import computed_again
from refimpl.oracle.truth import Truth
from refimpl.oracle.variants import Mistake

SAME = 2  # explanations of the same decisions or counts that are given
CLEAR = 1e-3  # share of an error that an explanation may leave
TIME_LIMIT = 2.0  # of processor time, after which no more slips are tried
TOTAL_LIMIT = 30.0  # the same of all that is tried, which takes long in a real model
AXES = {  # of a step, by their number
    1: ("blocks",),
    2: ("rows", "columns"),
    3: ("sequences", "tokens", "channels"),
    4: ("sequences", "heads", "tokens", "channels"),
}


def diagnosis(truth: Truth, result: StepResult) -> str:
    """What gives the candidate's numbers, or where these are wrong."""
    if known := [text for word, text in FAULTS.items() if word in result.fault.split()]:
        return known[0]
    candidate, best, found = truth.actual[result.step], inf, list[str]()
    least = distance(result.step, candidate, truth.values[result.step])
    end = process_time() + TOTAL_LIMIT
    for text, value in alternatives(truth, result.step):
        error = distance(result.step, candidate, value)
        allowed = result.tolerance or least / 100
        if best == 0 and text.startswith("`"):
            break  # slips may decide in the same way by chance
        if error == best == 0 and not text.startswith(found[-1]):
            found.append(text)
        elif error <= allowed and error < min(least / 8, best / 2):
            best, found = error, [text]
            if error <= max(CLEAR * least, result.own) and result.tolerance:
                break
        if len(found) == SAME or process_time() > end:
            break
    if found:
        to = f"to {best:.0e}" if best else "exactly"
        return f"your numbers equal refimpl's {to} if {', or '.join(found)}"
    text = where_wrong(truth, result)
    if truth.computed_in == "float64" and 1e-9 < least < 1e-5:
        text += "; the error has the size of float32 in some step"
    return text


def distance(step: str, candidate: Array, value: Array) -> float:
    """The error of a candidate; infinite for a fault."""
    error, _, fault = error_of(step, candidate, value)
    return inf if fault else error


def alternatives(truth: Truth, step: str) -> NamedArrays:
    """Other numbers for a step, with words that follow "if".

    What is named comes first, as of equal numbers the first words count: mistakes of the table,
    other steps' numbers, the model's facts and weights, slips in the functions that compute the
    step, and last a factor without a cause.
    """
    forward, end = stage_of(step) == "forward", process_time() + TIME_LIMIT
    clean, every = {} if forward else truth.clean, {**truth.values, **truth.given}
    for x in every.values():
        x.flags.writeable = False
    model = truth.model.as_kind(ChangedModel)  # whose weights are read once
    inputs = replace(truth, model=model, given=every, clean=clean, wanted={step})
    named = [(words, x) for k, words, x in variants.VARIANTS if fnmatchcase(step, k)]
    yield from attempts(inputs, step, named)
    yield from simple(truth, step)
    block = int(step.split(".")[1]) if step.startswith("blocks.") else -1
    numbers = variants.numbers_of(inputs, block, forward)
    if forward:
        facts = variants.of_facts(inputs, block, numbers)
        for some in (
            variants.of_inputs(inputs, step),
            facts,
            variants.of_weights(inputs, block),
        ):
            yield from attempts(inputs, step, some)
    yield from slipped(inputs, step, end)
    yield from multiples(truth, step, numbers)


def attempts(
    inputs: Truth, step: str, mistakes: Iterable[tuple[str, Mistake]]
) -> NamedArrays:
    """The step with one thing changed each time, where that is possible."""
    for words, change in mistakes:
        fresh = replace(inputs, values={}, squares=[], missed=set(), missing={})
        with (
            suppress(Exception),
            np.errstate(all="ignore"),
            catch_warnings(action="ignore"),
        ):
            with change.made(fresh) as other:
                value = np.asarray(computed_again(other, step))
            yield words, value


def slipped(inputs: Truth, step: str, end: float) -> NamedArrays:
    """The step with a slip in a function that computes it, until a time of this process."""
    for place in dict.fromkeys(
        x for pattern, x in variants.SLIPS if fnmatchcase(step, pattern)
    ):
        function = function_at(place)
        stopped = Mistake(codes=((function, _stopped.__code__),))
        if [*attempts(inputs, step, [("", stopped)])]:
            continue  # it is not called
        for words, code in slips(function):
            if process_time() > end:
                return
            change = Mistake(codes=((function, code),))
            yield from attempts(inputs, step, [(words, change)])


def _stopped(*_: Any, **__: Any) -> None:
    raise NotImplementedError


def simple(truth: Truth, step: str) -> NamedArrays:
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
    for axis, name in enumerate(AXES[right.ndim]):
        yield f"{name} are one late", np.roll(right, 1, axis)
        yield f"{name} are one early", np.roll(right, -1, axis)
        yield f"{name} are in reverse order", np.flip(right, axis)


def multiples(truth: Truth, step: str, numbers: Mapping[str, float]) -> NamedArrays:
    """Multiples by one number, which is a power of a known one or not."""
    right, mine = truth.values[step], truth.actual[step]
    if right.dtype.kind != "f" or right.size == 1:
        return
    with np.errstate(all="ignore"):
        factor = float(np.vdot(right, mine.astype(np.float64)) / np.vdot(right, right))
    every, sign = {**numbers, "2": 2.0, "10": 10.0, "e": np.e}, "minus " * (factor < 0)
    powers = (
        f", {sign}{text.format(name)}"
        for (power, text), (name, x) in product(variants.POWERS.items(), every.items())
        if x > 0 and isclose(abs(factor), x**power, rel_tol=1e-5)
    )
    yield f"they are multiplied by {factor:.6g}{next(powers, '')}", right * factor


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
            size = np.sqrt(
                np.mean(np.square(right), -1, keepdims=True, dtype=np.float64)
            )
            wrong = ~(off <= result.tolerance * np.maximum(size, np.abs(right)))
    parts = []
    for axis, name in enumerate(AXES[right.ndim]):
        hit = wrong.any(axis=tuple(i for i in range(wrong.ndim) if i != axis))
        if hit.any() and not hit.all():
            parts.append(f"{name} {spans(np.flatnonzero(hit))} of {len(hit)}")
    return "wrong: " + (
        ", ".join(parts) or f"{wrong.mean():.0%} of all numbers, in every part"
    )


def spans(indices: Array) -> str:
    """Indices in words: 0, 4 to 11."""
    runs = np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1)
    texts = [f"{x[0]}" if len(x) == 1 else f"{x[0]} to {x[-1]}" for x in runs]
    return ", ".join([*texts[:4], *["..."] * (len(texts) > 4)])
