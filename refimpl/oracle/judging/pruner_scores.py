"""The scores that decisions and outliers compare."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of
from refimpl.pruners.compensation import compensated, inverse_of_upper, upper_factor
from refimpl.pruners.pattern import parse_pattern
from refimpl.pruners.sparsegpt import WIDTH, hessian
from refimpl.pruners.wanda import wanda_score

Keep = npt.NDArray[np.bool_]
"""Decisions on weights, True = stays."""


def unpacked(bits: Array, width: int) -> Keep:
    """Decisions [..., width] from packed bits."""
    return np.unpackbits(bits.astype(np.uint8), axis=-1, count=width).astype(np.bool_)


def dense_scores(model: Model, steps: Mapping[str, Array], sequences: int) -> Iterator[Array]:
    """Wanda's scores of each block of the dense model, all linears in one row, from its sums."""
    for i, linears in enumerate(model.config.linears):
        weights = model.block(i, np.float64)
        sums = [steps[f"pruned.blocks.{i}.{input_of(name)}.squares"] for name in linears]
        pairs = zip(linears, sums, strict=True)
        scores = [wanda_score(weights[f"{name}.weight"], x / sequences) for name, x in pairs]
        yield np.concatenate([score.ravel() for score in scores])


def sparsegpt_scores(
    weight: Array, products: Array, sequences: int, keep: Keep, damping: float, group: int = WIDTH
) -> tuple[Array, Array]:
    """SparseGPT's scores at the time of each decision, and its new weights, both [out, in].

    The decisions are `keep`; `group` columns are decided on together.
    """
    score = np.empty(weight.shape)

    def decide(piece: Array, start: int) -> Keep:
        columns = slice(start, start + piece.shape[1])
        score[:, columns] = piece
        return keep[:, columns]

    new = compensated(weight, hessian(products, sequences), decide, group, damping, WIDTH)
    return score, new.weight


def sparsegpt_error(products: Array, truth: Array, sequences: int, damping: float) -> float:
    """The largest relative error of the factor's ``diag(U)^2``, by which scores are divided."""
    scale, right = (
        np.square(np.diag(inverse_of_upper(upper_factor(hessian(x, sequences), damping))))
        for x in (products, truth)
    )
    return float(np.max(np.abs(scale / right - 1)))


def linear_of(step: str) -> tuple[str, int, str]:
    """The pruner, block and linear of a step such as `wanda.blocks.1.experts.3.down_proj.keep`."""
    pruner, _, block, rest = step.split(".", 3)
    return pruner, int(block), rest.rpartition(".")[0]


def sums_behind(step: str) -> str:
    """The step with the sums that a decision, not by magnitude, is made of."""
    pruner, block, linear = linear_of(step)
    kind = "products" if pruner.startswith("sparsegpt") else "squares"
    return f"{pruner}.blocks.{block}.{input_of(linear)}.{kind}"


def scores_of(
    step: str, weight: Array, bits: Array, total: Array | None, count: int, how: tuple[str, float]
) -> tuple[Array, int]:
    """The scores [out, in] that a decision compares, and their group (`ties.together`).

    Of a weight, decisions as bits, the sums over so many sequences, of magnitude None, and
    `how`: the recipe's pattern and damping.
    """
    pruner = linear_of(step)[0]
    group = parse_pattern(how[0]).group if pruner.endswith("pattern") else 0
    if total is None:
        return np.abs(weight), -weight.shape[1]
    if not pruner.startswith("sparsegpt"):
        return wanda_score(weight, total / count), group
    right = unpacked(bits, weight.shape[1])
    score, _ = sparsegpt_scores(weight, total, count, right, how[1], group or WIDTH)
    return score, group or -WIDTH
