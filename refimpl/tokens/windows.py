"""Windows: consecutive pieces of a text, each of which the model reads on its own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.tokens.ids import read_ids, require_rows
from refimpl.tokens.samples import SEQ_LEN, Ids
from refimpl.tokens.text import encoded_pieces, file_text
from refimpl.tokens.tokenizer import bos_rule, read_tokenizer


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


def text_windows(
    path: str | Path,
    tokenizer_json: str | Path,
    window: int = SEQ_LEN,
    count: int | None = None,
    *,
    bos_id: int | None = None,
) -> Windows:
    """Tokenise a text from its start and cut it into `count` consecutive windows (None: all).

    A last, shorter window is used if it predicts a token. The bytes of a window reach from the
    start of its first predicted token to that of the token after its last.
    """
    path, tokenizer_json = Path(path), Path(tokenizer_json)
    _require(window, count)
    tokenizer = read_tokenizer(tokenizer_json)
    ids: list[npt.NDArray[np.int32]] = []  # of each piece
    starts: list[npt.NDArray[np.int32]] = []  # bytes at which these tokens start
    num_bytes = num_tokens = 0
    bos: int | None = None
    reason = ""
    for piece in encoded_pieces(file_text(path), tokenizer, str(path), places=True):
        if not ids:
            bos, reason = bos_rule(tokenizer, tokenizer_json.parent, piece.front, bos_id)
        offsets = byte_offsets(piece.text)
        ids.append(piece.ids)
        starts.append((num_bytes + offsets[piece.places[:, 0]]).astype(np.int32))
        num_bytes, num_tokens = num_bytes + int(offsets[-1]), num_tokens + len(piece.ids)
        if count is not None and num_tokens >= count * window:
            break
    stream, start_of = np.concatenate(ids), np.append(np.concatenate(starts), num_bytes)
    extra = 0 if bos is None else 1
    bounds = _bounds(stream, window - extra, count, 2 - extra, str(path))
    covered = tuple(int(start_of[b] - start_of[a + 1 - extra]) for a, b in bounds)
    before = np.array([] if bos is None else [bos], np.int64)
    windows = tuple(np.concatenate([before, stream[a:b]]) for a, b in bounds)
    source = f"{path.name}, {_extent(windows, window)}, {reason}"
    return Windows(windows, covered, window, source, "text", bos)


def id_windows(path: str | Path, window: int | None = None, count: int | None = None) -> Windows:
    """Windows of a file of ids as they are: its rows, or pieces of an array of one dimension."""
    path = Path(path)
    stored = read_ids(path)
    if stored.ndim == 1:
        window = SEQ_LEN if window is None else window
        _require(window, count)
        bounds = _bounds(stored, window, count, 2, str(path))
        windows = tuple(stored[a:b].astype(np.int64) for a, b in bounds)
    else:
        window = stored.shape[1] if window is None else window
        _require(window, count)
        require_rows(path, stored, count or 1, window, ("--windows", "--window"))
        windows = tuple(row[:window].astype(np.int64) for row in stored[:count])
    source = f"{path.name}, {_extent(windows, window)}, ids as given"
    return Windows(windows, None, window, source, "ids")


def byte_offsets(text: str) -> npt.NDArray[np.int64]:
    """Where each character of a text starts in UTF-8, and where the text ends: [characters + 1]."""
    point = np.frombuffer(text.encode("utf-32-le"), "<u4")
    width = 1 + sum((point >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
    return np.concatenate([[0], np.cumsum(width)]).astype(np.int64)


def _require(window: int, count: int | None) -> None:
    """Refuse to make no windows, or windows in which no token is predicted."""
    if window < 2 or (count is not None and count < 1):
        raise RefimplError(
            f"{'all' if count is None else count} windows of {window} tokens were requested",
            "at least 1 window of 2 tokens: the first token of a window is not predicted",
            f"for example, use --window {SEQ_LEN}",
        )


def _bounds(
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


def _extent(windows: tuple[Ids, ...], window: int) -> str:
    """The number and length of windows, for a reader."""
    number, last = len(windows), len(windows[-1])
    text = f"{number:,} window{'s' * (number > 1)} of {window:,} tokens"
    return text if last == window else f"{text} (the last of {last:,})"
