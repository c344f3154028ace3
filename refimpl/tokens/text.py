"""Samples and windows of a text, which is tokenised piece by piece."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import read_file, reading
from refimpl.storage.file_system import MIB
from refimpl.tokens.samples import (
    SAMPLES,
    SEQ_LEN,
    Tokens,
    Windows,
    cut,
    require_sizes,
    require_windows,
    spread,
    window_bounds,
    window_extent,
)
from refimpl.tokens.tokenizer import Encoding, TextTokenizer, bos_rule, read_tokenizer

TEXT = 64 * MIB  # bytes of a text
PIECE, LONGEST = 1 << 18, 1 << 20  # characters that are tokenised at once: usually, and at most
LETTER = r"[^\W\d_]"
# Where a token begins, in byte-level and in SentencePiece vocabularies.
CUT = re.compile(rf"(?<={LETTER})(?= {LETTER}|[\r\n])|(?<=\S\n)(?={LETTER})")


def text_tokens(
    path: str | Path,
    tokenizer_json: str | Path,
    samples: int = SAMPLES,
    seq_len: int = SEQ_LEN,
    *,
    bos_id: int | None = None,
) -> Tokens:
    """Tokenise a whole text and cut it into samples [n, S] spread evenly over it; BOS: `bos_rule`.

    A tokenizer that begins every text with a space does so for every 262,144 characters.
    """
    require_sizes(samples, seq_len)
    path, tokenizer_json = Path(path), Path(tokenizer_json)
    tokenizer = read_tokenizer(tokenizer_json)
    pieces, front = list[npt.NDArray[np.int32]](), tuple[int, ...]()
    for piece in encoded_pieces(file_text(path), tokenizer, str(path)):
        front = front if pieces else piece.front
        pieces.append(piece.ids)
    stream = np.concatenate(pieces)
    bos, reason = bos_rule(tokenizer, tokenizer_json.parent, front, bos_id)
    ids = cut(stream, samples, seq_len, bos, str(path))
    return Tokens(ids, f"{path.name}, {spread(ids, stream.size)}, {reason}", "text", bos)


def text_windows(
    path: str | Path,
    tokenizer_json: str | Path,
    window: int = SEQ_LEN,
    count: int | None = None,
    *,
    bos_id: int | None = None,
) -> Windows:
    """Cut a text from its start into `count` consecutive windows (None: all), the last shorter.

    The bytes of a window reach from its first predicted token to the token after its last.
    """
    path, tokenizer_json = Path(path), Path(tokenizer_json)
    require_windows(window, count)
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
    rows = window_bounds(stream, window - extra, count, 2 - extra, str(path))
    covered = tuple(int(start_of[b] - start_of[a + 1 - extra]) for a, b in rows)
    before = np.array([] if bos is None else [bos], np.int64)
    windows = tuple(np.concatenate([before, stream[a:b]]) for a, b in rows)
    source = f"{path.name}, {window_extent(windows, window)}, {reason}"
    return Windows(windows, covered, window, source, "text", bos)


def file_text(path: Path) -> str:
    """A UTF-8 text from a file, without its byte order mark."""
    with reading(path):
        content = read_file(path, TEXT)
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise RefimplError(
            f"{path} is not UTF-8 (byte {error.start})", "a text in UTF-8", "convert the file"
        ) from error
    if not text or text.isspace():
        raise RefimplError(f"{path} is empty", "a text", "use another file")
    return text


def encoded_pieces(
    text: str, tokenizer: TextTokenizer, name: str, places: bool = False, size: int | None = None
) -> Iterator[Encoding]:
    """Tokenise a text in pieces of `size` characters or a little more: the ids of the whole."""
    start, size = 0, PIECE if size is None else size
    while start < len(text):
        found = CUT.search(text, start + size)
        end = found.start() if found else len(text)
        if end - start > LONGEST:
            raise RefimplError(
                f"{name}: {end - start:,} characters, and no space or line break at a letter",
                f"lines of at most {LONGEST - PIECE:,} characters",
                "break the text into lines, or pass ids with --tokens",
            )
        yield tokenizer.encode(text[start:end], places)
        start = end


def byte_offsets(text: str) -> npt.NDArray[np.int64]:
    """Where each character of a text starts in UTF-8, and where the text ends: [characters + 1]."""
    point = np.frombuffer(text.encode("utf-32-le"), "<u4")
    width = 1 + sum((point >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000))
    return np.concatenate([[0], np.cumsum(width)]).astype(np.int64)
