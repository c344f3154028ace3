"""Logits of several sequences, each computed on a core of its own."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.forward import forward
from refimpl.model.kernels import TILED
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.running.threads import Workers


def logits(
    model: Model,
    sequences: Sequence[npt.ArrayLike] | Array,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
) -> list[Array]:
    """Compute the logits of `forward` for several sequences: one per core, with tiled kernels.

    Each sequence reads the weights that it needs. To read them once, pass a `HeldModel`.

    Args:
        model: From `read_model` or `HeldModel.of`.
        sequences: Token ids of each, [S], integers in [0, vocab_size); lengths may differ.
        dtype: float32, or float64 to certify.
        threads: Worker threads, of which any number gives the same bits. If None, one per core, or
            BLAS's threads for a single sequence.

    Returns:
        Scores of the next token of each sequence, [S, V]; those of `forward` but for rounding.

    Raises:
        RefimplError: As `forward`; ids in place of sequences; a number of threads that cannot be.

    Example:
        >>> from refimpl import forward, read_model
        >>> model = read_model("fixtures/llama")
        >>> found = logits(model, [[1, 5, 7], [2, 4]])
        >>> [z.shape for z in found]
        [(3, 264), (2, 264)]
        >>> bool(np.allclose(found[1], forward(model, [2, 4]).logits[0], atol=1e-5))
        True
    """
    if any(isinstance(ids, Integral) for ids in sequences):
        raise RefimplError(
            "token ids in place of sequences", "a list of sequences of ids", "pass [ids]"
        )

    def compute(ids: Any) -> Array:
        return forward(model, [ids], dtype=dtype, kernels=TILED).logits[0]

    if len(sequences) == 1 and threads is None:
        return [compute(sequences[0])]
    with Workers(threads) as workers:
        return workers.map(compute, sequences)
