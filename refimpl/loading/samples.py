"""Samples of equal length and consecutive windows of ids: of a file, of a stream, or drawn."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from refimpl.arguments import AtLeastOne, AtLeastZero, Checked, integer, require
from refimpl.errors import RefimplError, reading
from refimpl.loading.files.documents import filled
from refimpl.model.ops import Array
from refimpl.running.file_system import open_file

Ids = npt.NDArray[np.int64]

SAMPLES, SEQ_LEN = 8, 512  # defaults
SCORED = (
    4,
    128,
)  # those of `refimpl score`: docs/how-to/calibrate.md, "How many tokens are enough"
SHORTEST = 16  # tokens of a sample that a message advises
VALIDATED = 3, 13  # those of `refimpl validate`
MOST_TOKENS = 1 << 26


@dataclass(frozen=True)
class TokenFacts:
    """The origin of tokens, without the tokens, as documents hold it."""

    samples: int
    seq_len: int
    source: str  # one line for people
    kind: str  # text, ids or random
    bos: int | None  # id at the start of every sample
    sha256: str  # SHA-256 of the ids, as little-endian int64


@dataclass(frozen=True)
class Tokens(Checked):
    """Token ids and where they came from."""

    ids: Ids  # samples of equal length, [n, S], contiguous
    source: str  # one line for people
    kind: Literal["text", "ids", "random"]
    bos: int | None = None  # first id of every sample if it is BOS
    made_by: ClassVar[str] = "refimpl.text_tokens(path, model.tokenizer_json)"

    @property
    def sha256(self) -> str:
        """Provenance: SHA-256 of the ids as little-endian int64 bytes, in hex."""
        return hashlib.sha256(self.ids.astype("<i8").tobytes()).hexdigest()

    @property
    def facts(self) -> TokenFacts:
        """Where they came from, their number, and their hash."""
        samples, seq_len = self.ids.shape
        return filled(TokenFacts, self, samples=samples, seq_len=seq_len)


@dataclass(frozen=True)
class Windows:
    """Windows of a text and where they came from."""

    ids: tuple[
        Ids, ...
    ]  # of each window, BOS included, [tokens]; the last may be shorter
    bytes: (
        tuple[int, ...] | None
    )  # of the text that the predicted tokens of each window cover
    window: int  # tokens per window, BOS included
    source: str  # one line for people
    kind: Literal["text", "ids"]
    bos: int | None = None  # first id of every window if it is BOS

    @property
    def sha256(self) -> str:
        """Provenance: SHA-256 of all ids in order, as little-endian int64 bytes, in hex."""
        return hashlib.sha256(
            np.concatenate(self.ids).astype("<i8").tobytes()
        ).hexdigest()


def random_tokens(
    vocab_size: int, samples: int = SAMPLES, seq_len: int = SEQ_LEN, seed: int = 0
) -> Tokens:
    """Samples [n, S], uniform over V ids, by Philox keyed by the seed; more begin with the same."""
    require_sizes(samples, seq_len)
    require(seed, AtLeastZero, "seed")
    require(vocab_size, AtLeastOne, "vocab_size")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
    ids = generator.integers(0, vocab_size, (samples, seq_len), np.int64)
    source = (
        f"drawn uniformly from {vocab_size:,} ids with seed {seed} (no text was given)"
    )
    return Tokens(ids, source, "random")


def require_sizes(samples: int, seq_len: int) -> None:
    """Refuse to make no samples, samples without tokens, or more than fit into memory."""
    require(seq_len, integer(1, MOST_TOKENS), "seq_len")
    require(samples, integer(1, MOST_TOKENS // seq_len), "samples")


def samples_extent(ids: Ids, total: int) -> str:
    """How samples [n, S] were cut from a stream of `total` tokens, as part of a line."""
    samples, seq_len = ids.shape
    return f"{samples:,} sample{'s' * (samples > 1)} of {seq_len:,} tokens spread over {total:,}"


def spread_samples(
    stream: Array, samples: int, seq_len: int, bos: int | None, name: str
) -> Ids:
    """Cut n samples [n, S] that do not overlap out of a stream of ids [N], evenly spread over it.

    ``start_i = i (N - body) // (n - 1)``, body = S, or S - 1 if every sample begins with `bos`.
    """
    extra = 0 if bos is None else 1
    body, total = seq_len - extra, stream.size
    if body < 1:
        raise RefimplError(
            "a sample of 1 token would contain only BOS",
            "samples of at least 2 tokens",
            "use `seq_len=2` or more",
        )
    if samples * body > total:
        longest, most, one = total // samples + extra, total // body, total + extra
        options = [f"`seq_len={longest}`"] if longest >= SHORTEST else []
        options += [f"`samples={most}`"] if most else []
        fallback = (
            f"`samples=1` `seq_len={one}`" if one >= SHORTEST else "a longer text"
        )
        raise RefimplError(
            f"{name} has {total} tokens, too few for {samples} samples of {seq_len}"
            + (", BOS included" if extra else ""),
            f"at least {samples * body} tokens",
            "use " + (" or ".join(options) or fallback),
        )
    starts = [i * (total - body) // max(samples - 1, 1) for i in range(samples)]
    front = [] if bos is None else [bos]
    return np.array(
        [[*front, *stream[s : s + body].tolist()] for s in starts], np.int64
    )


def require_windows(window: int, count: int | None) -> None:
    """Refuse to make no windows, or windows in which no token is predicted."""
    require(window, Annotated[int, Meta(ge=2)], "window")
    require(count, AtLeastOne | None, "windows")


def window_bounds(
    stream: Array, body: int, count: int | None, least: int, name: str
) -> list[tuple[int, int]]:
    """First token of each window and the one after its last; the last has at least `least`."""
    rows = [(a, min(a + body, len(stream))) for a in range(0, len(stream), body)][
        :count
    ]
    if rows and rows[-1][1] - rows[-1][0] < least:
        rows.pop()
    if len(rows) < (count or 1):
        raise RefimplError(
            f"{name} has {len(stream)} tokens, enough for {len(rows)} windows",
            f"at least {count or 1} windows",
            f"use `windows={len(rows)}`, or a longer text"
            if rows
            else "use a longer text",
        )
    return rows


def window_extent(windows: tuple[Ids, ...], window: int) -> str:
    """The number and length of windows, for a reader."""
    number, last = len(windows), len(windows[-1])
    text = f"{number:,} window{'s' * (number > 1)} of {window:,} tokens"
    return text if last == window else f"{text} (the last of {last:,})"


def id_tokens(
    path: str | Path,
    samples: int | None = None,
    seq_len: int | None = None,
    default: tuple[int, int] = (SAMPLES, SEQ_LEN),
) -> Tokens:
    """Samples [n, S] of a file of ids, as they are: its rows, or, of one dimension, cut as a text.

    None means all rows and columns, or of one dimension the defaults.
    """
    path = Path(path)
    stored = read_ids(path)
    rows, width = stored.shape if stored.ndim == 2 else default
    samples = rows if samples is None else samples
    seq_len = width if seq_len is None else seq_len
    require_sizes(samples, seq_len)
    if stored.ndim == 1:
        ids = spread_samples(stored, samples, seq_len, None, str(path))
        return Tokens(
            ids, f"{path.name}, {samples_extent(ids, stored.size)}, ids as given", "ids"
        )
    require_rows(path, stored, samples, seq_len, ("samples", "seq_len"))
    ids = np.array(stored[:samples, :seq_len], np.int64, order="C")
    extent = (
        f"{samples:,} of {rows:,} rows, {seq_len:,} of {width:,} ids each, as given"
    )
    return Tokens(ids, f"{path.name}, {extent}", "ids")


def id_windows(
    path: str | Path, window: int | None = None, count: int | None = None
) -> Windows:
    """Windows of a file of ids as they are: its rows, or pieces of an array of one dimension."""
    path = Path(path)
    stored = read_ids(path)
    if stored.ndim == 1:
        window = SEQ_LEN if window is None else window
        require_windows(window, count)
        rows = window_bounds(stored, window, count, 2, str(path))
        windows = tuple(stored[a:b].astype(np.int64) for a, b in rows)
    else:
        window = stored.shape[1] if window is None else window
        require_windows(window, count)
        require_rows(path, stored, count or 1, window, ("windows", "window"))
        windows = tuple(row[:window].astype(np.int64) for row in stored[:count])
    source = f"{path.name}, {window_extent(windows, window)}, ids as given"
    return Windows(windows, None, window, source, "ids")


def require_rows(
    path: Path, stored: Array, rows: int, width: int, options: tuple[str, str]
) -> None:
    """Refuse a file whose array [rows, width] is too small."""
    if rows > len(stored) or width > stored.shape[1]:
        most = zip(options, stored.shape, (rows, width), strict=True)
        least = " ".join(f"`{name}={min(size, asked)}`" for name, size, asked in most)
        raise RefimplError(
            f"{path} contains {len(stored)} rows of {stored.shape[1]} ids",
            f"at least {rows} rows of {width} ids",
            f"use {least}",
        )


def read_ids(path: Path) -> Array:
    """Read ids, [N] or [rows, width], from `.npy`."""
    if path.suffix.lower() != ".npy":
        raise RefimplError(
            f"{path} is not a file of token ids",
            "a .npy file",
            "pass a text with `text`",
        )
    with reading(path):
        open_file(path).close()  # NumPy opens it itself, and would wait for a pipe
        try:
            ids = np.lib.format.open_memmap(path, mode="r")
        except OSError:
            raise
        except (
            Exception
        ) as error:  # a damaged header raises many types, even tokenize.TokenError
            raise RefimplError(
                f"{path} is not an array of integers ({error})",
                "a .npy file of integers",
                "save it with numpy.save(path, ids)",
            ) from error
    if (
        ids.dtype.kind not in "iu"
        or ids.ndim not in (1, 2)
        or (ids.ndim == 2 and not ids.size)
    ):
        raise RefimplError(
            f"{path} contains {ids.dtype} of shape {list(ids.shape)}",
            "integers, [tokens] or [samples, tokens]",
            "save integer ids (numpy: ids.astype(numpy.int64))",
        )
    if ids.dtype == np.uint64 and ids.size and ids.max() > np.iinfo(np.int64).max:
        raise RefimplError(
            f"{path} contains the id {ids.max()}", "64-bit ids", "save other ids"
        )
    return ids
