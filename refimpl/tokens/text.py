"""Samples of token ids from a text, which is read and tokenised piece by piece."""

import codecs
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import reading
from refimpl.storage.file_system import MIB, open_file, too_large
from refimpl.tokens.samples import SAMPLES, SEQ_LEN, Tokens, cut, require_sizes, spread
from refimpl.tokens.tokenizer import Encoding, TextTokenizer, bos_rule, read_tokenizer

TEXT = 64 * MIB  # bytes of a text
CHUNK = MIB  # bytes that are read at once
PIECE = 1 << 18  # characters that are tokenised at once
OVERLAP = 1 << 12  # characters after a piece, in which a place to cut is sought
AGREE = 32  # ids after a cut that must not depend on what is before it,
SPACES = 8  # but for so many, where a tokenizer begins every text with a space
BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


def text_tokens(
    path: str | Path,
    tokenizer_json: str | Path,
    samples: int = SAMPLES,
    seq_len: int = SEQ_LEN,
    *,
    bos_id: int | None = None,
) -> Tokens:
    """Tokenise a whole text and cut it into samples [n, S] spread evenly over it.

    `tokenizer_config.json` and `special_tokens_map.json` beside `tokenizer.json` decide whether
    every sample begins with BOS (see `bos_rule`); `bos_id` is `bos_token_id` of `config.json`.
    A tokenizer that begins every text with a space does so for every 262,144 characters.
    """
    require_sizes(samples, seq_len)
    path, tokenizer_json = Path(path), Path(tokenizer_json)
    tokenizer = read_tokenizer(tokenizer_json)
    pieces, front = list[npt.NDArray[np.int32]](), tuple[int, ...]()
    for piece in encoded_pieces(text_chunks(path), tokenizer, str(path)):
        front = front if pieces else piece.front
        pieces.append(piece.ids)
    stream = np.concatenate(pieces)
    bos, reason = bos_rule(tokenizer, tokenizer_json.parent, front, bos_id)
    ids = cut(stream, samples, seq_len, bos, str(path))
    return Tokens(ids, f"{path.name}, {spread(ids, stream.size)}, {reason}", "text", bos)


def text_chunks(path: Path) -> Iterator[str]:
    """Read a UTF-8 text from a file, without its byte order mark, chunk by chunk."""
    decoder, count, empty = codecs.getincrementaldecoder("utf-8-sig")(), 0, True
    with reading(path), open_file(path, TEXT) as file:
        while True:
            raw = file.read(CHUNK)
            before = count - len(decoder.getstate()[0])
            try:
                chunk = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise RefimplError(
                    f"{path} is not UTF-8 (byte {before + error.start})",
                    "a text in UTF-8",
                    "convert the file",
                ) from error
            count, empty = count + len(raw), empty and not chunk.strip()
            if count > TEXT:
                raise too_large(path, TEXT)
            yield chunk
            if not raw:
                break
    if empty:
        raise RefimplError(f"{path} is empty", "a text", "use another file")


def encoded_pieces(
    chunks: Iterator[str],
    tokenizer: TextTokenizer,
    name: str,
    places: bool = False,
    size: int | None = None,
) -> Iterator[Encoding]:
    """Tokenise a text piece by piece, as if it were one.

    A tokenizer needs about 100 bytes per character, so it gets pieces of `size` characters or a
    little more. They are cut at spaces between letters: such a space begins a new token in
    byte-level and in SentencePiece vocabularies. If there is none, a piece ends between two of its
    tokens, and the tokens after it must be those that the next piece begins with: all neighbours
    are then neighbours in one of the two, and BPE keeps a sequence of tokens if and only if it
    keeps all pairs of neighbours. The first ids of a piece may differ where the tokenizer begins
    every text with a space.
    """
    size = PIECE if size is None else size
    after = np.zeros(0, np.int32)  # ids that must come next
    buffer = ""
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= size + OVERLAP + 1:
            at = BETWEEN_LETTERS.search(buffer, size, size + OVERLAP)
            if at is not None:
                piece = _encoded(buffer[: at.start()], tokenizer, places, after, name)
                after = after[:0]
            else:
                whole = _encoded(buffer[: size + OVERLAP], tokenizer, True, after, name)
                piece, after = _first_tokens(whole, size, name)
            buffer = buffer[len(piece.text) :]
            yield piece
    if buffer:
        yield _encoded(buffer, tokenizer, places, after, name)


def _encoded(
    text: str, tokenizer: TextTokenizer, places: bool, after: npt.NDArray[np.int32], name: str
) -> Encoding:
    """Tokenise a piece, which must begin with the ids `after` the cut before it."""
    encoding = tokenizer.encode(text, places)
    if not _begins_with(encoding.ids, after):
        raise _uncuttable(name)
    return encoding


def _first_tokens(piece: Encoding, size: int, name: str) -> tuple[Encoding, npt.NDArray[np.int32]]:
    """The tokens in about the first `size` characters of a piece, and a few after them."""
    first, end = piece.places.T
    between = first[1:] == end[:-1]  # not inside of a character, which may be several tokens
    near = (first[1:] <= size) & (first[1:] > max(0, size - OVERLAP))
    cuts = 1 + np.flatnonzero(between & near)
    if not len(cuts):
        raise _uncuttable(name)
    cut_at = int(cuts[-1])
    known = piece.ids[cut_at:][end[cut_at:] <= size + OVERLAP // 2]
    if not len(known):
        raise _uncuttable(name)
    ids, places, text = piece.ids[:cut_at], piece.places[:cut_at], piece.text[: first[cut_at]]
    return replace(piece, ids=ids, places=places, text=text), known[:AGREE]


def _begins_with(ids: npt.NDArray[np.int32], after: npt.NDArray[np.int32]) -> bool:
    """Whether ids begin with others, but for the first few of both."""
    count = len(after) - SPACES
    if np.array_equal(ids[: len(after)], after):
        return True
    return count > 0 and any(
        np.array_equal(ids[i : i + count], after[j : j + count])
        for i in range(SPACES + 1)
        for j in range(SPACES + 1)
    )


def _uncuttable(name: str) -> RefimplError:
    """The error for a text whose tokens depend on each other over thousands of characters."""
    return RefimplError(
        f"{name}: {PIECE:,} characters that cannot be tokenised piece by piece",
        "a text with spaces or line breaks, or one whose tokens are short",
        "break the text into lines, or pass ids with --tokens",
    )
