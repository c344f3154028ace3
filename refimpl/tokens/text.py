"""Samples of token ids from a text, which is tokenised piece by piece."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import read_file, reading
from refimpl.storage.file_system import MIB
from refimpl.tokens.samples import SAMPLES, SEQ_LEN, Tokens, cut, require_sizes, spread
from refimpl.tokens.tokenizer import Encoding, TextTokenizer, bos_rule, read_tokenizer

TEXT = 64 * MIB  # bytes of a text
PIECE, LONGEST = 1 << 18, 1 << 20  # characters that are tokenised at once: usually, and at most
LETTER = r"[^\W\d_]"
CUT = re.compile(rf"(?<={LETTER})(?= {LETTER}|[\r\n])|(?<=\S\n)(?={LETTER})")  # a token begins


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
    """Tokenise a text as if it were one, in pieces of `size` characters or a little more.

    A tokenizer needs a few hundred bytes per character. `CUT` finds where a new token begins in
    byte-level and in SentencePiece vocabularies.
    """
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
