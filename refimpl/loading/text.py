"""The tokens of a computation: of a text by the model's tokenizer, of a file of ids, or drawn."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError, need, reading
from refimpl.loading.files.documents import json_object, read_file
from refimpl.loading.files.tokenizers_library import Library
from refimpl.loading.samples import (
    SAMPLES,
    SEQ_LEN,
    Tokens,
    Windows,
    id_tokens,
    random_tokens,
    require_sizes,
    require_windows,
    samples_extent,
    spread_samples,
    window_bounds,
    window_extent,
)
from refimpl.model.model import Model
from refimpl.model.state import checked_ids
from refimpl.running.file_system import MIB
from refimpl.running.isolation import Isolated

TOKENIZER = 128 * MIB  # bytes of a tokenizer.json
SECONDS, MEMORY = 120.0, 2048 * MIB  # limits of the library, for one piece of a text


@dataclass(frozen=True)
class Encoding:
    """A text as ids."""

    ids: npt.NDArray[np.int32]  # of the text, [N]
    front: tuple[int, ...]  # special ids that the post-processor puts before them
    spans: npt.NDArray[
        np.int32
    ]  # first character and the one after the last, [N, 2], if asked
    text: str = ""


class TextTokenizer:
    """A `tokenizer.json` in a process of its own, which the library aborts on some files."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._library = Isolated(
            Library,
            content,
            MEMORY,
            name=f"{path} is not a tokenizer that works",
            seconds=SECONDS,
            refused=(
                "the tokenizer.json of the model",
                "get it again, or pass ids with `tokens`",
            ),
        )

    def encode(self, text: str, spans: bool = False) -> Encoding:
        """Encode a text, with the ids that the post-processor adds; `spans` if asked for."""
        answer, marks, ends = self._library.call("encode", text, spans)
        unsigned, is_text = (
            np.frombuffer(answer, "<u4"),
            np.frombuffer(marks, np.uint8) > 0,
        )
        ids = np.minimum(unsigned, np.iinfo(np.int32).max).astype(
            np.int32
        )  # no model has more
        front = tuple(ids[: is_text.argmax()].tolist()) if is_text.any() else ()
        pairs = np.frombuffer(ends, "<u4").reshape(-1, 2).astype(np.int32)
        return Encoding(ids[is_text], front, pairs[is_text] if spans else pairs, text)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        return self._library.call("token_to_id", token)

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, or None."""
        return self._library.call("id_to_token", token_id)


def read_tokenizer(path: Path) -> TextTokenizer:
    """Open a `tokenizer.json`."""
    need("text", "tokenizers", otherwise=", or pass ids with `tokens`")
    with reading(path):
        if not path.exists():
            raise RefimplError(
                f"no tokenizer at {path}",
                "the model's tokenizer.json",
                "put it there, or pass ids: `tokens=FILE.npy` or `tokens=random`",
            )
        return TextTokenizer(path, read_file(path, TOKENIZER))


def bos_rule(
    tokenizer: TextTokenizer, folder: Path, front: Sequence[int], bos_id: int | None
) -> tuple[int | None, str]:
    """The id that begins a text (None for no id), and the reason for a reader.

    `add_bos_token` decides, or else the post-processor, by the ids at its `front`. transformers 5
    ignores `add_bos_token` beside a `tokenizer.json`; transformers 4 follows it in some classes.
    """
    add_bos = _read_settings(folder / "tokenizer_config.json").get("add_bos_token")
    if not (add_bos is None or isinstance(add_bos, bool)) or len(front) > 1:
        raise RefimplError(
            f"{folder}: add_bos_token is {add_bos!r}, and the tokenizer puts {len(front)} tokens "
            "before a text",
            "add_bos_token true or false, and at most one token before a text",
            "correct the tokenizer, or pass ids with `tokens`",
        )
    if add_bos is False:
        return None, "no BOS (add_bos_token is false in tokenizer_config.json)"
    if front:
        return front[0], f"BOS {front[0]} added by tokenizer.json"
    if not add_bos:
        return None, "no BOS asked for"
    named = _bos_token(tokenizer, folder)
    if named is not None:
        return named, f"BOS {named} asked for by tokenizer_config.json"
    if bos_id is None:
        raise RefimplError(
            f"{folder / 'tokenizer_config.json'}: add_bos_token is true, but no file names BOS",
            "bos_token in that file, or bos_token_id in config.json",
            "add one of them, or set add_bos_token to false",
        )
    return bos_id, f"BOS {bos_id} (from config.json) asked for by tokenizer_config.json"


def _bos_token(tokenizer: TextTokenizer, folder: Path) -> int | None:
    """The id of `bos_token` as the files beside a tokenizer name it, or None."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        name = _read_settings(folder / file).get("bos_token")
        name = name.get("content") if isinstance(name, dict) else name
        token_id = tokenizer.token_to_id(name) if isinstance(name, str) else None
        if token_id is not None:
            return token_id
    return None


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file beside the tokenizer; none if it does not exist."""
    with reading(path):
        return (
            json_object(read_file(path), str(path), "an object")
            if path.exists()
            else {}
        )


TEXT = 64 * MIB  # bytes of a text
USUAL_PIECE, LONGEST_PIECE = 1 << 18, 1 << 20  # characters that are tokenised at once
LETTER = r"[^\W\d_]"
# Where a token begins, in byte-level and in SentencePiece vocabularies.
TOKEN_START = re.compile(rf"(?<={LETTER})(?= {LETTER}|[\r\n])|(?<=\S\n)(?={LETTER})")


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
    stream, _, bos, reason = _stream(path, tokenizer_json, bos_id)
    ids = spread_samples(stream, samples, seq_len, bos, str(path))
    return Tokens(
        ids, f"{path.name}, {samples_extent(ids, stream.size)}, {reason}", "text", bos
    )


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
    require_windows(window, count)
    path, tokenizer_json = Path(path), Path(tokenizer_json)
    most = None if count is None else count * window
    stream, start_of, bos, reason = _stream(path, tokenizer_json, bos_id, True, most)
    extra = 0 if bos is None else 1
    rows = window_bounds(stream, window - extra, count, 2 - extra, str(path))
    covered = tuple(int(start_of[b] - start_of[a + 1 - extra]) for a, b in rows)
    before = np.array([] if bos is None else [bos], np.int64)
    windows = tuple(np.concatenate([before, stream[a:b]]) for a, b in rows)
    source = f"{path.name}, {window_extent(windows, window)}, {reason}"
    return Windows(windows, covered, window, source, "text", bos)


def _stream(
    path: Path,
    tokenizer: Path,
    bos_id: int | None,
    spans: bool = False,
    most: int | None = None,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], int | None, str]:
    """The ids of a text (if `most`, so many at least), [N]; with spans, their bytes; its BOS."""
    library, front = read_tokenizer(tokenizer), tuple[int, ...]()
    ids, starts = (
        list[npt.NDArray[np.int32]](),
        list[npt.NDArray[np.int64]](),
    )  # of each piece
    num_bytes = num_tokens = 0
    for piece in encoded_pieces(file_text(path), library, str(path), spans):
        front = front if ids else piece.front
        ids.append(piece.ids)
        num_tokens += len(piece.ids)
        if spans:
            offsets = byte_offsets(piece.text)
            starts.append(num_bytes + offsets[piece.spans[:, 0]])
            num_bytes += int(offsets[-1])
        if most is not None and num_tokens >= most:
            break
    starts.append(np.array([num_bytes]))
    bos, reason = bos_rule(library, tokenizer.parent, front, bos_id)
    return np.concatenate(ids), np.concatenate(starts), bos, reason


def file_text(path: Path) -> str:
    """A UTF-8 text from a file, without its byte order mark."""
    with reading(path):
        content = read_file(path, TEXT)
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise RefimplError(
            f"{path} is not UTF-8 (byte {error.start})",
            "a text in UTF-8",
            "convert the file",
        ) from error
    if not text or text.isspace():
        raise RefimplError(f"{path} is empty", "a text", "use another file")
    return text


def encoded_pieces(
    text: str,
    tokenizer: TextTokenizer,
    name: str,
    spans: bool = False,
    size: int | None = None,
) -> Iterator[Encoding]:
    """Tokenise a text in pieces of `size` characters or a little more: the ids of the whole."""
    start, size = 0, USUAL_PIECE if size is None else size
    while start < len(text):
        found = TOKEN_START.search(text, start + size)
        end = found.start() if found else len(text)
        if end - start > LONGEST_PIECE:
            raise RefimplError(
                f"{name}: {end - start:,} characters, and no space or line break at a letter",
                f"lines of at most {LONGEST_PIECE - USUAL_PIECE:,} characters",
                "break the text into lines, or pass ids with `tokens`",
            )
        yield tokenizer.encode(text[start:end], spans)
        start = end


def byte_offsets(text: str) -> npt.NDArray[np.int64]:
    """Where each character of a text starts in UTF-8, and where the text ends: [characters + 1]."""
    point = np.frombuffer(text.encode("utf-32-le"), "<u4")
    width = 1 + sum(
        (point >= least).astype(np.int64) for least in (0x80, 0x800, 0x10000)
    )
    return np.concatenate([[0], np.cumsum(width)]).astype(np.int64)


RANDOM_IDS = Path("random")  # in place of a file of ids
# Two speeches in the public domain, which come with refimpl: docs/how-to/calibrate.md
CALIBRATION, EVALUATION = "roosevelt-1901.txt", "roosevelt-1902.txt"
FOLDER = Path(__file__).parent


def model_tokens(
    model: Model,
    text: Path | None = None,
    ids: Path | None = None,
    samples: int | None = None,
    seq_len: int | None = None,
    seed: int = 0,
    calibration: bool = False,
    default: tuple[int, int] = (SAMPLES, SEQ_LEN),
) -> Tokens:
    """Tokens of a text or of ids, checked against the model; else of refimpl's text, or drawn."""
    config = model.config
    usual, longest = default[0], min(default[1], config.max_position_embeddings)
    length = longest if seq_len is None else seq_len
    count = usual if samples is None else samples
    tokenizer, bos = model.tokenizer_json, model.config_file.get("bos_token_id")
    if text is not None and ids is not None:
        raise RefimplError("`text` with `tokens`", "one of them", "omit one of them")
    own = calibration and text is None and ids is None
    if own or text is not None:
        path = text or FOLDER / CALIBRATION
        tokens = text_tokens(path, tokenizer, count, length, bos_id=bos)
    elif ids is not None and ids != RANDOM_IDS:
        tokens = id_tokens(ids, samples, seq_len, (usual, longest))
    else:
        tokens = random_tokens(config.vocab_size, count, length, seed)
    checked_ids(tokens.ids, config)
    return replace(tokens, source=f"refimpl's {tokens.source}") if own else tokens


def model_windows(
    model: Model,
    text: Path | None = None,
    window: int | None = None,
    count: int | None = None,
) -> Windows:
    """Windows of a text for a model; without a text, of one that comes with refimpl."""
    longest = model.config.max_position_embeddings
    if window is not None and window > longest:
        raise RefimplError(
            f"windows of {window} tokens",
            f"at most {longest}, the model's max_position_embeddings",
            f"use `window={longest}` or less",
        )
    size = min(SEQ_LEN, longest) if window is None else window
    bos, tokenizer = model.config_file.get("bos_token_id"), model.tokenizer_json
    windows = text_windows(
        text or FOLDER / EVALUATION, tokenizer, size, count, bos_id=bos
    )
    return windows if text else replace(windows, source=f"refimpl's {windows.source}")
