"""Samples of equal length and consecutive windows, cut from a stream of ids; random samples."""

import hashlib
from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.arguments import AtLeastOne, Checked, Seed, require
from refimpl.errors import RefimplError

Ids = npt.NDArray[np.int64]

SAMPLES, SEQ_LEN = 8, 512  # defaults
SCORED = 4, 128  # those of `refimpl score`: docs/how-to/calibrate.md, "How many tokens are enough"
VALIDATED = 3, 13  # those of `refimpl validate`
MOST_TOKENS = 1 << 26


@dataclass(frozen=True)
class Tokens(Checked):
    """Token ids and where they came from."""

    ids: Ids  # samples of equal length, [n, S], contiguous
    source: str  # one line for people
    kind: Literal["text", "ids", "random"]
    bos: int | None = None  # first id of every sample if it is BOS

    @property
    def sha256(self) -> str:
        """Provenance: SHA-256 of the ids as little-endian int64 bytes, in hex."""
        return hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class Windows:
    """Windows of a text and where they came from."""

    ids: tuple[Ids, ...]  # of each window, BOS included, [tokens]; the last may be shorter
    bytes: tuple[int, ...] | None  # of the text that the predicted tokens of each window cover
    window: int  # tokens per window, BOS included
    source: str  # one line for people
    kind: Literal["text", "ids"]
    bos: int | None = None  # first id of every window if it is BOS

    @property
    def sha256(self) -> str:
        """Provenance: SHA-256 of all ids in order, as little-endian int64 bytes, in hex."""
        return hashlib.sha256(np.concatenate(self.ids).astype("<i8").tobytes()).hexdigest()


def random_tokens(
    vocab_size: int, samples: int = SAMPLES, seq_len: int = SEQ_LEN, seed: int = 0
) -> Tokens:
    """Samples [n, S], uniform over V ids, by Philox keyed by the seed; more begin with the same."""
    require_sizes(samples, seq_len)
    require(seed, Seed, "seed")
    require(vocab_size, AtLeastOne, "vocab_size")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    ids = generator.integers(0, vocab_size, (samples, seq_len), np.int64)
    source = f"drawn uniformly from {vocab_size:,} ids with seed {seed} (no text was given)"
    return Tokens(ids, source, "random")


def require_sizes(samples: int, seq_len: int) -> None:
    """Refuse to make no samples, samples without tokens, or more than fit into memory."""
    require(seq_len, Annotated[int, 1, MOST_TOKENS], "seq-len", "--seq-len ")
    require(samples, Annotated[int, 1, MOST_TOKENS // seq_len], "samples", "--samples ")


def spread(ids: Ids, total: int) -> str:
    """How samples [n, S] were cut from a stream of `total` tokens, as part of a line."""
    samples, seq_len = ids.shape
    return f"{samples:,} sample{'s' * (samples > 1)} of {seq_len:,} tokens spread over {total:,}"


def cut(stream: npt.NDArray[Any], samples: int, seq_len: int, bos: int | None, name: str) -> Ids:
    """Cut n samples [n, S] that do not overlap out of a stream of ids [N], evenly spread over it.

    ``start_i = i (N - body) // (n - 1)``, body = S, or S - 1 if every sample begins with `bos`.
    """
    extra = 0 if bos is None else 1
    body, total = seq_len - extra, stream.size
    if body < 1:
        raise RefimplError(
            "a sample of 1 token would contain only BOS",
            "samples of at least 2 tokens",
            "use --seq-len 2 or more",
        )
    if samples * body > total:
        longest, most = total // samples, total // body
        options = [f"--seq-len {longest + extra}"] if longest else []
        options += [f"--samples {most}"] if most else []
        fallback = f"--samples 1 --seq-len {total + extra}" if total else "a longer text"
        raise RefimplError(
            f"{name} has {total} tokens, too few for {samples} samples of {seq_len}"
            + (", BOS included" if extra else ""),
            f"at least {samples * body} tokens",
            "use " + (" or ".join(options) or fallback),
        )
    starts = [i * (total - body) // max(samples - 1, 1) for i in range(samples)]
    front = [] if bos is None else [bos]
    return np.array([[*front, *stream[s : s + body].tolist()] for s in starts], np.int64)


def require_windows(window: int, count: int | None) -> None:
    """Refuse to make no windows, or windows in which no token is predicted."""
    require(window, Annotated[int, 2, inf], "window", "--window ")
    require(count, AtLeastOne | None, "windows", "--windows ")


def window_bounds(
    stream: npt.NDArray[Any], body: int, count: int | None, least: int, name: str
) -> list[tuple[int, int]]:
    """First token of each window and the one after its last; the last has at least `least`."""
    rows = [(a, min(a + body, len(stream))) for a in range(0, len(stream), body)][:count]
    if rows and rows[-1][1] - rows[-1][0] < least:
        rows.pop()
    if len(rows) < (count or 1):
        raise RefimplError(
            f"{name} has {len(stream)} tokens, enough for {len(rows)} windows",
            f"at least {count or 1} windows",
            f"use --windows {len(rows)}, or a longer text" if rows else "use a longer text",
        )
    return rows


def window_extent(windows: tuple[Ids, ...], window: int) -> str:
    """The number and length of windows, for a reader."""
    number, last = len(windows), len(windows[-1])
    text = f"{number:,} window{'s' * (number > 1)} of {window:,} tokens"
    return text if last == window else f"{text} (the last of {last:,})"
