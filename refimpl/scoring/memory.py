"""How many sequences of the dense model are read together."""

import numpy as np
import numpy.typing as npt

from refimpl.model.config import Config
from refimpl.model.statistics import INPUT_OF


def read_together(
    config: Config, length: int, memory: int, dtype: npt.DTypeLike, most: int | None = None
) -> int:
    """How many sequences, and the sums of squares of each, fit into some memory.

    Args:
        config: The model's facts.
        length: Tokens, S.
        memory: Bytes.
        dtype: Of the computation; sums are float64.
        most: Sequences at most, or None.

    Returns:
        Sequences, at least one.

    Example:
        >>> from refimpl import read_model
        >>> config = read_model("fixtures/llama").config
        >>> read_together(config, 16, 1 << 16, "float32"), read_together(config, 16, 1, "float32")
        (7, 1)
    """
    shapes = config.linear_shapes
    widths = {INPUT_OF[name]: width for name, (_, width) in shapes.items()}  # each once
    state_bytes = length * config.hidden_size * np.dtype(dtype).itemsize
    sums_bytes = 8 * config.num_blocks * sum(widths.values())
    room = max(1, memory // (2 * state_bytes + sums_bytes))
    return room if most is None else min(room, most)
