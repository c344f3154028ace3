"""Samples of equal length: cut from a stream of ids, drawn at random, checked against a model."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError

Ids = npt.NDArray[np.int64]

SAMPLES, SEQ_LEN = 8, 512  # where nobody says otherwise


@dataclass(frozen=True)
class Tokens:
    """Token ids and where they came from.

    Args:
        ids: Samples of equal length, [n, S], int64, contiguous.
        source: Where they came from, one line for people.
        kind: "text", "ids" or "random".
        bos: Id put at the start of every sample, or None.

    Example:
        >>> Tokens(np.array([[1, 2, 3]]), "by hand", "ids").sha256[:16]
        'e2e2033ae7e19d68'
    """

    ids: Ids
    source: str
    kind: Literal["text", "ids", "random"]
    bos: int | None = None

    @property
    def sha256(self) -> str:
        """Provenance: SHA-256 of the ids as little-endian int64 bytes, in hex."""
        return hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest()


def random_tokens(
    vocab_size: int, samples: int = SAMPLES, seq_len: int = SEQ_LEN, seed: int = 0
) -> Tokens:
    """Draw ids uniformly from the vocabulary, for where there is no text.

    Args:
        vocab_size: V, number of token ids.
        samples: Number of samples, n; more samples begin with the same ones.
        seq_len: Tokens per sample, S.
        seed: Of the draw, 0 or more.

    Returns:
        Samples, [n, S].

    Raises:
        RefimplError: No vocabulary, no samples, no tokens, or a negative seed.

    Source:
        Ours: Philox keyed by the seed.

    Example:
        >>> random_tokens(49152, samples=2, seq_len=4).source
        'drawn uniformly from 49,152 ids with seed 0 (no text was given)'
    """
    require_sizes(samples, seq_len)
    if seed < 0 or vocab_size < 1:
        raise RefimplError(
            f"seed {seed}, {vocab_size} token ids", "a seed of 0 or more, ids", "use --seed 0"
        )
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    ids = generator.integers(0, vocab_size, (samples, seq_len), np.int64)
    source = f"drawn uniformly from {vocab_size:,} ids with seed {seed} (no text was given)"
    return Tokens(ids, source, "random")


def require_sizes(samples: int, seq_len: int) -> None:
    """Refuse to make no samples, or empty ones.

    Args:
        samples: Number of samples, n.
        seq_len: Tokens per sample, S.

    Raises:
        RefimplError: One of them is below 1.

    Source:
        Ours.

    Example:
        >>> require_sizes(samples=8, seq_len=512)
    """
    if samples < 1 or seq_len < 1:
        raise RefimplError(
            f"{samples} samples of {seq_len} tokens",
            "at least 1 sample of 1 token",
            f"use for example --samples {SAMPLES} --seq-len {SEQ_LEN}",
        )


def spread(ids: Ids, total: int) -> str:
    """Say how samples were cut.

    Args:
        ids: The samples, [n, S].
        total: Tokens in the stream they were cut from.

    Returns:
        Part of a line.

    Source:
        Ours.

    Example:
        >>> spread(np.zeros((8, 512), np.int64), 912345)
        '8 samples of 512 tokens spread over 912,345'
    """
    samples, seq_len = ids.shape
    return f"{samples:,} sample{'s' * (samples > 1)} of {seq_len:,} tokens spread over {total:,}"


def cut(stream: npt.NDArray[Any], samples: int, seq_len: int, bos: int | None, name: str) -> Ids:
    """Cut samples out of a stream of ids, evenly spread from its start to its end.

    start_i = i (N - body) // (n - 1), body = S, or S - 1 where every sample begins with BOS.

    Args:
        stream: Ids, [N].
        samples: Number of samples, n.
        seq_len: Tokens per sample, BOS included, S.
        bos: Id put before each sample, or None.
        name: Of the stream, for errors.

    Returns:
        Samples that do not overlap, [n, S].

    Raises:
        RefimplError: Too few ids (the error says which numbers work), or nothing but BOS asked for.

    Source:
        Ours.

    Example:
        >>> cut(np.arange(10), samples=2, seq_len=3, bos=None, name="ten").tolist()
        [[0, 1, 2], [7, 8, 9]]
        >>> cut(np.arange(10), samples=2, seq_len=3, bos=99, name="ten").tolist()
        [[99, 0, 1], [99, 8, 9]]
    """
    extra = 0 if bos is None else 1
    body, total = seq_len - extra, stream.size
    if body < 1:
        raise RefimplError(
            "samples of 1 token, which is BOS", "at least 1 token more", "use --seq-len 2 or more"
        )
    if samples * body > total:
        longest, most = total // samples, total // body
        ways = [f"--seq-len {longest + extra}"] if longest else []
        ways += [f"--samples {most}"] if most else []
        last = f"--samples 1 --seq-len {total + extra}" if total else "a longer text"
        raise RefimplError(
            f"{name} has {total} tokens, too few for {samples} samples of {seq_len}"
            + (", BOS included" if extra else ""),
            f"at least {samples * body} tokens",
            "use " + (" or ".join(ways) or last),
        )
    starts = [i * (total - body) // max(samples - 1, 1) for i in range(samples)]
    front = [] if bos is None else [bos]
    return np.array([[*front, *stream[s : s + body].tolist()] for s in starts], np.int64)
