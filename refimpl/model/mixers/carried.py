"""What a state has behind the residual stream, in models whose blocks read more than the stream.

The state of a token is its residual stream, D channels. Behind them it carries its id, if blocks
look up embeddings of their own, and the keys and values that later blocks read: each from the block
on that computes them. So a state is all that the later blocks need, wherever it goes.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from refimpl.model.attention import merge_heads, split_heads
from refimpl.model.config import DIGITS, ID, Config
from refimpl.model.mixers.projection import Place
from refimpl.model.mixers.sizes import Attention, SharedAttention
from refimpl.model.ops import Array

BASE = 256  # of the digits of an id: bfloat16 has all whole numbers up to here


def stream(x: Array, config: Config) -> Array:
    """The residual stream of a state, [..., D]."""
    return x[..., : config.hidden_size] if config.carried else x


def with_stream(x: Array, h: Array) -> Array:
    """A state with another residual stream, h [..., S, D], that carries the same."""
    width = h.shape[-1]
    return h if x.shape[-1] == width else np.concatenate([h, x[..., width:]], axis=-1)


def whole_state(h: Array, token_ids: Array, config: Config, kept: Sequence[Array] = ()) -> Array:
    """The state of a residual stream h, [B, S, D], and of what is kept beside it, in order.

    Args:
        h: Residual stream, [B, S, D].
        token_ids: Ids, [B, S].
        config: The model's facts.
        kept: Keys and values of the blocks before, each [B, K, S, h].

    Returns:
        [B, S, D and what is carried].
    """
    digits, count = list[Array](), config.carried.get(ID, 0)
    rest = token_ids.astype(np.int32) if count else token_ids
    for _ in range(count):
        digits, rest = [*digits, rest - rest // BASE * BASE], rest // BASE
    ids = [np.stack(digits, axis=-1).astype(h.dtype)] if digits else []
    parts = [h, *ids, *map(merge_heads, kept)]
    return np.concatenate(parts, axis=-1) if len(parts) > 1 else h


def apart(x: Array, place: Place, config: Config) -> tuple[Array, Place, Callable[[Array], Array]]:
    """Take a state apart for a block, and say how the state after the block is put together.

    Args:
        x: State before the block, [B, S, D and what is carried].
        place: The tokens' place, as the block sees it.
        config: The model's facts.

    Returns:
        The residual stream [B, S, D]; the place with what the block reads of that which is
        carried; a function that makes a state of the stream after the block, with the block's keys
        and values if later blocks read them.
    """
    if not config.carried:
        return x, place, lambda h: h
    mixer, see, computed = place.mixer, place.observe, dict[str, Array]()
    beside, token_ids, shared = x[..., config.hidden_size :], None, dict[str, Array]()
    if ID in config.carried:
        token_ids = beside[..., DIGITS - 1].astype(np.int32)  # shaders have no 64-bit integers
        for digit in reversed(range(DIGITS - 1)):
            token_ids = token_ids * BASE + beside[..., digit].astype(np.int32)
    if isinstance(mixer, SharedAttention):
        start = sum(size for block, size in config.carried.items() if block < mixer.of)
        middle, end = start + mixer.kept_size // 2, start + mixer.kept_size
        shared["k"] = split_heads(beside[..., start:middle], mixer.head_dim)
        shared["v"] = split_heads(beside[..., middle:end], mixer.head_dim)

    def observe(name: str, value: Array) -> Array:
        value = see(name, value)
        if name in ("k", "v"):
            computed[name] = value
        return value

    def together(h: Array) -> Array:
        kept = isinstance(mixer, Attention) and mixer.kept
        new = [merge_heads(computed[name]) for name in "kv"] if kept else []
        return np.concatenate([h, beside, *new], axis=-1)

    place = replace(place, observe=observe, token_ids=token_ids, shared=shared)
    return stream(x, config), place, together
