"""Windows: a text cut into consecutive pieces of tokens, each read by the model on its own."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.tokens.ids import read_ids
from refimpl.tokens.samples import SEQ_LEN, Ids
from refimpl.tokens.text import pieces, read_text
from refimpl.tokens.tokenizer import bos_rule, of_text, read_tokenizer


@dataclass(frozen=True)
class Windows:
    """Windows of a text and where they came from.

    Args:
        ids: Ids of each, BOS included, [tokens]; the last may be shorter than the others.
        bytes: Of the text, in UTF-8, that the predicted tokens of each cover: all but the first
            id of a window, which nothing predicts. None where there is no text.
        window: Tokens per window, BOS included.
        source: Where they came from, one line for people.
        kind: "text" or "ids".
        bos: Id put at the start of every window, or None.
    """

    ids: tuple[Ids, ...]
    bytes: tuple[int, ...] | None
    window: int
    source: str
    kind: Literal["text", "ids"]
    bos: int | None = None

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
    """Tokenise a text from its start and cut it into consecutive windows.

    Window i holds tokens ``i body`` to ``(i + 1) body - 1`` of the text, ``body = window``, or
    ``window - 1`` where every window begins with BOS. A last window is kept if there is anything
    in it to predict. Its predicted tokens cover the bytes from the start of the first of them to
    the start of the token after the last, by the tokenizer's offsets.

    Args:
        path: Text, UTF-8.
        tokenizer_json: The model's tokenizer, with its companions, as for `text_tokens`.
        window: Tokens per window, BOS included, 2 or more.
        count: Number of windows; None for the whole text.
        bos_id: `bos_token_id` of the model's `config.json`.

    Returns:
        The windows.

    Raises:
        RefimplError: As `text_tokens`; fewer windows than asked for.

    Source:
        Ours; BOS as in `text_tokens`.

    Differs:
        Peers tokenise with whatever the tokenizer adds at the start of the text only, and drop a
        last shorter window.

    Example:
        >>> w = text_windows("fixtures/text.txt", "fixtures/llama/tokenizer.json", 9, count=3)
        >>> [ids.tolist()[0] for ids in w.ids], w.bytes, w.source
        ([1, 1, 1], (8, 8, 8), 'text.txt, 3 windows of 9 tokens, BOS 1 added by tokenizer.json')
    """
    path, tokenizer_json = Path(path), Path(tokenizer_json)
    _require(window, count)
    text, tokenizer = read_text(path), read_tokenizer(tokenizer_json)
    parts: list[Ids] = []
    starts: list[npt.NDArray[np.int64]] = []  # byte at which each token starts
    total = tokens = 0  # bytes and tokens so far
    bos: int | None = None
    said = ""
    for piece in pieces(text):
        encoding = tokenizer.encode_batch([piece])[0]
        ids, front, mine = of_text(encoding)
        if not parts:
            bos, said = bos_rule(tokenizer, tokenizer_json.parent, front, bos_id)
        at = byte_offsets(piece)
        first = np.array([start for start, _ in encoding.offsets], np.int64)[mine]
        parts.append(ids)
        starts.append(total + at[first])
        total, tokens = total + int(at[-1]), tokens + len(ids)
        if count is not None and tokens >= count * window:
            break
    stream, places = np.concatenate(parts), np.append(np.concatenate(starts), total)
    extra = 0 if bos is None else 1
    rows = _cut(stream, window - extra, count, 2 - extra, str(path))
    covered = tuple(int(places[b] - places[a + 1 - extra]) for a, b in rows)
    before = np.array([] if bos is None else [bos], np.int64)
    cut = tuple(np.concatenate([before, stream[a:b]]) for a, b in rows)
    return Windows(cut, covered, window, f"{path.name}, {_said(cut, window)}, {said}", "text", bos)


def id_windows(path: str | Path, window: int | None = None, count: int | None = None) -> Windows:
    """Read windows from a file of ids, as they are: no BOS is added.

    Args:
        path: `.npy` or `.jsonl` as for `id_tokens`; each row is a window, a one-dimensional array
            is cut into consecutive ones.
        window: Tokens per window, 2 or more; None for the width of the rows, or 512. Rows are cut
            to it.
        count: Number of windows; None for all.

    Returns:
        The windows; how many bytes they cover is not known.

    Raises:
        RefimplError: As `id_tokens`; fewer windows than asked for, or shorter ones.

    Source:
        Ours.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "ids.npy")
        ...     np.save(file, np.arange(7))
        ...     [ids.tolist() for ids in id_windows(file, window=3).ids]
        [[0, 1, 2], [3, 4, 5]]
    """
    path = Path(path)
    stored = read_ids(path)
    if stored.ndim == 1:
        window = SEQ_LEN if window is None else window
        _require(window, count)
        rows = _cut(stored, window, count, 2, str(path))
        cut = tuple(stored[a:b].astype(np.int64) for a, b in rows)
    else:
        window = stored.shape[1] if window is None else window
        _require(window, count)
        if window > stored.shape[1] or (count or 1) > len(stored):
            raise RefimplError(
                f"{path} holds {len(stored)} rows of {stored.shape[1]} ids",
                f"at least {count or 1} of {window}",
                "ask for no more windows, and no longer ones, than there are",
            )
        cut = tuple(row[:window].astype(np.int64) for row in stored[:count])
    return Windows(cut, None, window, f"{path.name}, {_said(cut, window)}, ids as given", "ids")


def byte_offsets(text: str) -> npt.NDArray[np.int64]:
    """Where each character of a text starts in UTF-8, and where the text ends.

    Args:
        text: The text.

    Returns:
        Offsets, [characters + 1].

    Source:
        Ours.

    Example:
        >>> byte_offsets("aé€😀").tolist()
        [0, 1, 3, 6, 10]
    """
    point = np.frombuffer(text.encode("utf-32-le"), "<u4")
    width = 1 + sum((point >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
    return np.concatenate([[0], np.cumsum(width)]).astype(np.int64)


def _require(window: int, count: int | None) -> None:
    """Refuse windows in which nothing is predicted, or none."""
    if window < 2 or (count is not None and count < 1):
        raise RefimplError(
            f"{'all' if count is None else count} windows of {window} tokens",
            "at least 1 window of 2 tokens: the first token of a window is not predicted",
            f"use for example --window {SEQ_LEN}",
        )


def _cut(
    stream: npt.NDArray[Any], body: int, count: int | None, least: int, name: str
) -> list[tuple[int, int]]:
    """Where windows begin and end in a stream; the last holds at least `least` tokens."""
    rows = [(a, min(a + body, len(stream))) for a in range(0, len(stream), body)][:count]
    if rows and rows[-1][1] - rows[-1][0] < least:
        rows.pop()
    if len(rows) < (count or 1):
        raise RefimplError(
            f"{name} has {len(stream)} tokens, enough for {len(rows)} windows",
            f"at least {count or 1}",
            f"use --windows {len(rows)}, or a longer text" if rows else "use a longer text",
        )
    return rows


def _said(cut: tuple[Ids, ...], window: int) -> str:
    """How many windows, and how long."""
    number, last = len(cut), len(cut[-1])
    text = f"{number:,} window{'s' * (number > 1)} of {window:,} tokens"
    return text if last == window else f"{text} (the last of {last:,})"
