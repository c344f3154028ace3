"""Logits of several sequences, each computed on a core of its own."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from refimpl.model.forward import forward
from refimpl.model.kernels import TILED
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.running.threads import Workers


def logits(
    model: Model,
    sequences: Sequence[npt.ArrayLike],
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
) -> list[Array]:
    """Compute the logits of `forward` for several sequences: one per core, with tiled kernels.

    Each sequence reads the weights that it needs. To read them once, pass a `HeldModel`.

    Args:
        model: From `read_model` or `HeldModel.of`.
        sequences: Token ids of each, [S], integers in [0, vocab_size); lengths may differ.
        dtype: float32, or float64 to certify.
        threads: Worker threads, which change nothing; if None, one per core, or BLAS's threads for
            a single sequence.

    Returns:
        Scores of the next token of each sequence, [S, V]; those of `forward` but for rounding.

    Raises:
        RefimplError: As `forward`; a number of threads that cannot be.

    Example:
        >>> from refimpl import forward, read_model
        >>> model = read_model("fixtures/llama")
        >>> found = logits(model, [[1, 5, 7], [2, 4]])
        >>> [z.shape for z in found]
        [(3, 264), (2, 264)]
        >>> bool(np.allclose(found[1], forward(model, [2, 4]).logits[0], atol=1e-5))
        True
    """

    def compute(ids: npt.ArrayLike) -> Array:
        return forward(model, np.atleast_1d(ids)[None], dtype=dtype, kernels=TILED).logits[0]

    if len(sequences) == 1 and threads is None:
        return [compute(sequences[0])]
    with Workers(threads) as workers:
        return workers.map(compute, sequences)
