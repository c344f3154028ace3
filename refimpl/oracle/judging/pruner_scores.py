"""The scores that decisions and outliers compare."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import second_moments
from refimpl.pruners.compensation import compensated, inverse_factor
from refimpl.pruners.sparsegpt import WIDTH, hessian
from refimpl.pruners.wanda import wanda_score
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import dense_squares

Keep = npt.NDArray[np.bool_]
"""Decisions on weights, True = stays."""


def unpacked(bits: Array, width: int) -> Keep:
    """Decisions [..., width] from packed bits."""
    return np.unpackbits(bits.astype(np.uint8), axis=-1, count=width).astype(np.bool_)


def dense_scores(model: Model, ids: npt.NDArray[np.int64]) -> Iterator[Array]:
    """Wanda's scores of each block of the dense model in float64, all linears in one row."""
    with Settings(np.float64).open() as resources:
        squares = dense_squares(model, ids, resources)
    for i, sums in enumerate(squares):
        weights = model.block(i, np.float64)
        moments = second_moments(sums, len(ids), model.config.linears[i])
        scores = [wanda_score(weights[f"{name}.weight"], x) for name, x in moments.items()]
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
        np.square(np.diag(inverse_factor(hessian(x, sequences), damping)))
        for x in (products, truth)
    )
    return float(np.max(np.abs(scale / right - 1)))
