"""Token ids from a text, by the tokenizer of the model."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from refimpl.errors import RefimplError
from refimpl.tokens.disk import reading
from refimpl.tokens.samples import SAMPLES, SEQ_LEN, Tokens, cut, require_sizes, spread
from refimpl.tokens.tokenizer import bos_rule, of_text, read_tokenizer

PIECE = 1 << 18  # characters
BETWEEN_LETTERS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")


def text_tokens(
    path: str | Path,
    tokenizer_json: str | Path,
    samples: int = SAMPLES,
    seq_len: int = SEQ_LEN,
    *,
    bos_id: int | None = None,
) -> Tokens:
    """Tokenise a whole text and cut it into samples spread evenly over it.

    start_i = i (N - body) // (samples - 1), N tokens in the text, body = seq_len, or seq_len - 1
    where every sample starts with BOS.

    Args:
        path: Text, UTF-8.
        tokenizer_json: The model's tokenizer; `tokenizer_config.json` and
            `special_tokens_map.json` are looked for beside it.
        samples: Number of samples, n.
        seq_len: Tokens per sample, BOS included, S.
        bos_id: `bos_token_id` of the model's `config.json`; used where BOS is asked for and no
            file beside the tokenizer says which token it is.

    Returns:
        Samples that do not overlap, [n, S].

    Raises:
        RefimplError: A file that is missing, unreadable or malformed; an empty text, or one too
            short; BOS asked for and not named; the `tokenizers` library missing.

    Source:
        Ours.

    Differs:
        transformers 5 reads BOS off the tokenizer's post-processor and ignores `add_bos_token`
        beside a `tokenizer.json`; transformers 4 honours it in some classes only. Here false
        forbids BOS, true asks for it, and where it is absent the post-processor decides. A
        tokenizer that begins every text with a space does so for every 262,144 characters.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> tokenizer = Tokenizer(models.WordLevel({"to": 0, "be": 1, "or": 2, "not": 3}, "or"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        >>> with TemporaryDirectory() as folder:
        ...     text, model = Path(folder, "hamlet.txt"), Path(folder, "tokenizer.json")
        ...     _ = text.write_text("to be or not to be"), tokenizer.save(str(model))
        ...     tokens = text_tokens(text, model, samples=2, seq_len=2)
        >>> tokens.ids.tolist()
        [[0, 1], [0, 1]]
        >>> tokens.source
        'hamlet.txt, 2 samples of 2 tokens spread over 6, no BOS asked for'
    """
    require_sizes(samples, seq_len)
    path, tokenizer_json = Path(path), Path(tokenizer_json)
    text = read_text(path)
    tokenizer = read_tokenizer(tokenizer_json)
    encode = tokenizer.encode_batch_fast  # without offsets: less time and memory
    encoded = [of_text(encode([piece])[0]) for piece in pieces(text)]
    bos, said = bos_rule(tokenizer, tokenizer_json.parent, encoded[0][1], bos_id)
    stream = np.concatenate([ids for ids, _, _ in encoded])
    out = cut(stream, samples, seq_len, bos, str(path))
    return Tokens(out, f"{path.name}, {spread(out, stream.size)}, {said}", "text", bos)


def read_text(path: Path) -> str:
    """Read a text.

    Args:
        path: The file, UTF-8; a byte order mark is no part of the text.

    Returns:
        The text.

    Raises:
        RefimplError: The file is missing, unreadable, empty, or not UTF-8.

    Source:
        Ours.

    Example:
        >>> read_text(Path("fixtures/text.txt")).split()[0]
        'A'
    """
    with reading(path):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RefimplError(
            f"{path} is not UTF-8 (byte {error.start})", "a text in UTF-8", "convert the file"
        ) from error
    if not text.strip():
        raise RefimplError(f"{path} is empty", "a text", "give another file")
    return text


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Cut a text at spaces between letters, so that tokenising needs memory for a piece only.

    A tokenizer keeps about 100 bytes per character. Such a space begins a new token in byte-level
    and in SentencePiece vocabularies, so the ids are those of the whole text.

    Args:
        text: The text.
        size: Least characters of a piece but the last.

    Returns:
        Pieces that join to the text.

    Example:
        >>> list(pieces("to be, or not", size=3))
        ['to be, or', ' not']
    """
    start = 0
    while cut_at := BETWEEN_LETTERS.search(text, start + size):
        yield text[start : cut_at.start()]
        start = cut_at.start()
    yield text[start:]
