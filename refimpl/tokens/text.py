"""Token ids from a text, by the tokenizer of the model."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.tokens.disk import parsed, reading
from refimpl.tokens.samples import SAMPLES, SEQ_LEN, Tokens, cut, require_sizes, spread

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
    tokenizer = _read_tokenizer(tokenizer_json)
    encoded = [_encode(tokenizer, piece) for piece in pieces(text)]
    bos, said = _bos(tokenizer, tokenizer_json.parent, encoded[0][1], bos_id)
    stream = np.concatenate([ids for ids, _ in encoded])
    out = cut(stream, samples, seq_len, bos, str(path))
    return Tokens(out, f"{path.name}, {spread(out, stream.size)}, {said}", "text", bos)


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


def _encode(tokenizer: Any, piece: str) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Ids of a piece of text, and the special ids that the post-processor puts before it."""
    encoding = tokenizer.encode_batch_fast([piece])[0]  # without offsets: less time and memory
    ids = np.array(encoding.ids, np.int64)
    of_text = np.array([sequence is not None for sequence in encoding.sequence_ids], np.bool_)
    return ids[of_text], ids[: of_text.argmax()].tolist() if of_text.any() else []


def _bos(
    tokenizer: Any, folder: Path, front: list[int], bos_id: int | None
) -> tuple[int | None, str]:
    """Which id begins every sample, and who says so.

    `front` is what the post-processor puts before a text (Llama 3, Gemma; the only voice in files
    that transformers 5 saves); `add_bos_token` is what older files say beside it.
    """
    config = _read_settings(folder / "tokenizer_config.json")
    wish = config.get("add_bos_token")
    if not (wish is None or isinstance(wish, bool)) or len(front) > 1:
        raise RefimplError(
            f"add_bos_token {wish!r}, and {len(front)} tokens put before a text in {folder}",
            "true or false, and at most one token",
            "correct the tokenizer, or give ids with --tokens",
        )
    if wish is False:
        return None, "no BOS (add_bos_token is false in tokenizer_config.json)"
    if front:
        return front[0], f"BOS {front[0]} added by tokenizer.json"
    if not wish:
        return None, "no BOS asked for"
    for names in (config, _read_settings(folder / "special_tokens_map.json")):
        name = names.get("bos_token")
        name = name.get("content") if isinstance(name, dict) else name
        found = tokenizer.token_to_id(name) if isinstance(name, str) else None
        if found is not None:
            return found, f"BOS {found} asked for by tokenizer_config.json"
    if bos_id is None:
        raise RefimplError(
            f"add_bos_token is true in {folder / 'tokenizer_config.json'}, but which token is BOS "
            "is nowhere said",
            "bos_token there, or bos_token_id in config.json",
            "add one of them, or set add_bos_token to false",
        )
    return bos_id, f"BOS {bos_id} (from config.json) asked for by tokenizer_config.json"


def _read_tokenizer(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise RefimplError(
            "a text needs the tokenizers library, which is not installed",
            "refimpl with its extra [text]",
            "pip install 'refimpl[text]', or give ids with --tokens",
        ) from error
    with reading(path):
        if not path.exists():
            raise RefimplError(
                f"no tokenizer at {path}",
                "the model's tokenizer.json",
                "put it there, or give ids with --tokens FILE.npy or FILE.jsonl",
            )
        raw = path.read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # the library raises nothing more specific
        raise RefimplError(
            f"{path} is no tokenizer ({error})",
            "the tokenizer.json of the model",
            "get the file again, or give ids with --tokens",
        ) from error
    tokenizer.no_truncation()  # files saved after training may cut at its sequence length
    tokenizer.no_padding()
    return tokenizer


def _read_settings(path: Path) -> dict[str, Any]:
    with reading(path):
        if not path.exists():
            return {}
        settings = parsed(path.read_bytes(), str(path))
    if not isinstance(settings, dict):
        raise RefimplError(f"{path} holds no JSON object", "an object", "get the file again")
    return settings
