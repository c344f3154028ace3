"""Token ids that a model accepts."""

import numpy as np
import numpy.typing as npt

from refimpl.arguments import require
from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.model.ops import Array


def checked_ids(token_ids: npt.ArrayLike, config: Config) -> Array:
    """Convert token ids, [S] or [B, S], to int64, [B, S], or refuse them."""
    require(token_ids, npt.ArrayLike, "token_ids")
    ids = np.asarray(token_ids)
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or ids.size == 0:
        raise RefimplError(
            f"token ids have dtype {ids.dtype} and shape {list(ids.shape)}",
            "at least one integer, in shape [samples, tokens]",
            "save integer ids (numpy: ids.astype(numpy.int64))",
        )
    ids = np.atleast_2d(ids)
    outside = (ids < 0) | (ids >= config.vocab_size)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise RefimplError(
            f"{outside.sum()} token ids are outside the vocabulary; the first is "
            f"{ids[row, column]} (sample {row}, position {column})",
            f"ids from 0 to {config.vocab_size - 1}",
            "use the tokenizer that belongs to this model",
        )
    if ids.shape[1] > config.max_position_embeddings:
        raise RefimplError(
            f"a sequence of {ids.shape[1]} tokens is too long for this model",
            f"at most {config.max_position_embeddings} tokens (its max_position_embeddings)",
            f"use `seq_len={config.max_position_embeddings}` or less",
        )
    return ids.astype(np.int64)
