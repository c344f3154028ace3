"""Samples of token ids from a text."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.file_reading import reading
from refimpl.tokens.samples import SAMPLES, SEQ_LEN, Tokens, cut, require_sizes, spread
from refimpl.tokens.tokenizer import bos_rule, of_text, read_tokenizer

PIECE = 1 << 18  # characters that are tokenised at once
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
    text = read_text(path)
    tokenizer = read_tokenizer(tokenizer_json)
    encode = tokenizer.encode_batch_fast  # without offsets: less time and memory
    encoded = [of_text(encode([piece])[0]) for piece in pieces(text)]
    bos, reason = bos_rule(tokenizer, tokenizer_json.parent, encoded[0][1], bos_id)
    stream = np.concatenate([ids for ids, _, _ in encoded])
    ids = cut(stream, samples, seq_len, bos, str(path))
    return Tokens(ids, f"{path.name}, {spread(ids, stream.size)}, {reason}", "text", bos)


def read_text(path: Path) -> str:
    """Read a UTF-8 text without its byte order mark."""
    with reading(path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefimplError(
            f"{path} is not UTF-8 (byte {error.start})", "a text in UTF-8", "convert the file"
        ) from error
    if not text.strip():
        raise RefimplError(f"{path} is empty", "a text", "use another file")
    return text


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Cut a text at spaces between letters into pieces of at least `size` characters.

    A tokenizer needs about 100 bytes per character, so it gets one piece at a time. Such a space
    begins a new token in byte-level and in SentencePiece vocabularies, so the ids are the same.
    """
    start = 0
    while cut_at := BETWEEN_LETTERS.search(text, start + size):
        yield text[start : cut_at.start()]
        start = cut_at.start()
    yield text[start:]
