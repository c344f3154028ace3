"""Candidates that are wrong on purpose, and that no case may pass: zeros, shifts, scales.

A project can put them through its own checks, too: what passes one of them checks nothing.
"""

from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

from refimpl.model.ops import Array
from refimpl.oracle.case import Case

Change = Callable[[Case, str, Array], Array]


def negative_candidates(case: Case, dtype: str) -> dict[str, dict[str, Array]]:
    """The case's own values in a dtype, each time wrong in one way, by the name of the way.

    Ways that change nothing, such as permuted blocks of a model that has one, are left out.

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> from refimpl.oracle.check import check
        >>> case = read_case("fixtures/cases/llama")
        >>> wrong = negative_candidates(case, "float32")
        >>> len(wrong), {check(case, arrays).verdict for arrays in list(wrong.values())[:2]}
        (11, {'fail'})
    """
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    with np.errstate(over="ignore"):  # sums beyond float16 are Inf
        right = {
            name: x.astype(kind) if x.dtype.kind == "f" else x
            for name, x in case.expected.items()
        }
        wrong = {
            name: {step: change(case, step, x) for step, x in right.items()}
            for name, change in CHANGES.items()
        }
    last = f"blocks.{case.model.config.num_blocks - 1}."
    wrong["the last block left out"] = {
        step: right[f"{last}resid_pre"] if step == f"{last}resid_post" else x
        for step, x in right.items()
    }
    return {
        name: arrays
        for name, arrays in wrong.items()
        if any(x.tobytes() != right[step].tobytes() for step, x in arrays.items())
    }


def trivial_answers(case: Case) -> dict[str, dict[str, Array]]:
    """Steps with nothing of them computed, in float64, by the name of the way."""
    first, sizes, asked = (
        case.recipe.bases[0],
        case.model.config.linear_sizes,
        case.recipe.sparsity,
    )

    def uncomputed(step: str, x: Array) -> Array | None:
        """What a step reads, or is without the method."""
        start, _, kind = step.rpartition(".")
        if kind in ("base", "corrected"):
            return np.full_like(x, asked)
        if kind == "counts":
            return np.round(asked * sizes).astype(x.dtype)
        if kind == "perplexity":
            return np.full_like(x, case.model.config.vocab_size)
        if kind == "keep":
            return np.roll(x, 1, axis=0)
        if kind == "weight":
            return case.model.weights[step.partition(".")[2]].read(np.float64)
        return case.expected.get(
            step.removesuffix("_rope") if "_rope" in kind else f"{start}.resid_pre"
        )

    def uncorrected(step: str, _: Array) -> Array | None:
        """The step before the last part of the method."""
        start, _, kind = step.rpartition(".")
        base = f"{start}.base"
        before = {"corrected": base if base in case.expected else f"{first}.base"}
        before["perplexity"] = "dense.perplexity"
        return case.expected.get(before.get(kind, ""))

    ways = {
        "zeros": lambda _, x: np.zeros_like(x),
        "ones": lambda _, x: np.ones_like(x),
        "uncomputed": uncomputed,
        "uncorrected": uncorrected,
    }
    answers = {
        way: {k: answer(k, x) for k, x in case.expected.items()}
        for way, answer in ways.items()
    }
    return {
        way: {
            k: x
            for k, x in of.items()
            if x is not None and x.shape == case.expected[k].shape
        }
        for way, of in answers.items()
    }


def _floats(change: Callable[[Array], Array]) -> Change:
    """A change of float arrays alone."""
    return lambda case, step, x: x if x.dtype.kind in "iu" else change(x)


def _input(case: Case, step: str, x: Array) -> Array:
    """What a block reads, in place of every state it computes."""
    parts = step.split(".")
    if parts[0] != "blocks":
        return x
    first = case.expected[f"blocks.{parts[1]}.resid_pre"].astype(x.dtype)
    return first if first.shape == x.shape else x


def _permuted(case: Case, step: str, x: Array) -> Array:
    """The values of the next block in place of each block's."""
    parts, blocks = step.split("."), case.model.config.num_blocks
    for at in (1, 2):
        if len(parts) > at and parts[at].isdigit():
            parts[at] = str((int(parts[at]) + 1) % blocks)
            other = case.expected.get(".".join(parts))
            return (
                x if other is None or other.shape != x.shape else other.astype(x.dtype)
            )
    return np.roll(x, 1, axis=0) if len(x) == blocks else x


def _transposed(case: Case, step: str, x: Array) -> Array:
    """The last two axes swapped, in the right shape."""
    return x if x.ndim < 2 else np.swapaxes(x, -1, -2).reshape(x.shape)


def _next_token(case: Case, step: str, x: Array) -> Array:
    """The values of the token before in place of each token's."""
    forward = step.split(".")[0] in ("embed", "blocks", "final_norm", "logits")
    return np.roll(x, 1, axis=-2) if forward else x


def _one_nan(x: Array) -> Array:
    """NaN in the middle."""
    wrong = np.array(x)
    wrong.flat[wrong.size // 2] = np.nan
    return wrong


CHANGES: Mapping[str, Change] = {
    "zeros": lambda case, step, x: np.zeros_like(x),
    "ones": lambda case, step, x: np.ones_like(x),
    "the input": _input,
    "1 % too large": _floats(lambda x: (x.astype(np.float64) * 1.01).astype(x.dtype)),
    "permuted blocks": _permuted,
    "transposed": _transposed,
    "one token late": _next_token,
    "one NaN": _floats(_one_nan),
    "negated": _floats(np.negative),
    "NaN everywhere": _floats(lambda x: np.full_like(x, np.nan)),
}
