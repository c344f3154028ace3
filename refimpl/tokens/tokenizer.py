"""The tokenizer of a model, and its rule for BOS."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError, need
from refimpl.isolation.child_process import ChildProcess
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.storage.file_system import MIB

TOKENIZER = 128 * MIB  # bytes of a tokenizer.json
SECONDS, MEMORY = 120.0, 2048 * MIB  # limits of the library, for one piece of a text
ANSWER = 256 * MIB  # bytes of its answer: 13 for each token


@dataclass(frozen=True)
class Encoding:
    """A text as ids."""

    ids: npt.NDArray[np.int32]  # of the text, [N]
    front: tuple[int, ...]  # special ids that the post-processor puts before them
    places: npt.NDArray[np.int32]  # first character and the one after the last, [N, 2], if asked
    text: str = ""


class TextTokenizer:
    """A `tokenizer.json` in a process of its own, which the library aborts on some files."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._child = ChildProcess(
            "refimpl.isolation.tokenizers_library:Library",
            content,
            str(MEMORY).encode(),
            name=f"{path} is not a tokenizer that works",
            seconds=SECONDS,
            largest=ANSWER,
            refused=("the tokenizer.json of the model", "get it again, or pass ids with --tokens"),
        )

    def encode(self, text: str, places: bool = False, special: bool = True) -> Encoding:
        """Encode a text; `special` asks for the post-processor's ids."""
        flags = (b"1" if asked else b"" for asked in (special, places))
        answer = self._child.call("encode", text.encode("utf-8", "surrogatepass"), *flags)
        try:
            raw, of_text, ends = answer
            unsigned, is_text = np.frombuffer(raw, "<u4"), np.frombuffer(of_text, np.uint8) > 0
            pairs = np.frombuffer(ends, "<u4").reshape(-1, 2)
        except ValueError:
            raise self._child.unusable() from None
        count = len(unsigned)
        inside = (pairs[:, 0] <= pairs[:, 1]) & (pairs[:, 1] <= len(text))
        if len(is_text) != count or len(pairs) != count * places or not inside.all():
            raise self._child.unusable()
        ids = np.minimum(unsigned, np.iinfo(np.int32).max).astype(np.int32)  # no model has more
        front = tuple(ids[: is_text.argmax()].tolist()) if is_text.any() else ()
        spans = pairs.astype(np.int32)
        return Encoding(ids[is_text], front, spans[is_text] if places else spans, text)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        token_id = self._answer("token_to_id", token.encode("utf-8", "surrogatepass"))
        if token_id is not None and len(token_id) != np.dtype(np.uint32).itemsize:
            raise self._child.unusable()
        return None if token_id is None else int.from_bytes(token_id, "little")

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, or None."""
        token = self._answer("id_to_token", str(token_id).encode())
        return None if token is None else token.decode("utf-8", "replace")

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        text = self._answer("decode", np.array(ids, "<u4").tobytes())
        return "" if text is None else text.decode("utf-8", "replace")

    def _answer(self, method: str, argument: bytes) -> bytes | None:
        """The answer to a question with one or none."""
        answer = self._child.call(method, argument)
        if len(answer) > 1:
            raise self._child.unusable()
        return answer[0] if answer else None


def read_tokenizer(path: Path) -> TextTokenizer:
    """Open a `tokenizer.json`."""
    need("text", "tokenizers", otherwise=", or pass ids with --tokens")
    with reading(path):
        if not path.exists():
            raise RefimplError(
                f"no tokenizer at {path}",
                "the model's tokenizer.json",
                "put it there, or pass ids with --tokens FILE.npy or FILE.jsonl",
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
            "correct the tokenizer, or pass ids with --tokens",
        )
    if add_bos is False:
        return None, "no BOS (add_bos_token is false in tokenizer_config.json)"
    if front:
        return front[0], f"BOS {front[0]} added by tokenizer.json"
    if not add_bos:
        return None, "no BOS asked for"
    named = special_token(tokenizer, folder, "bos_token")
    if named is not None:
        return named, f"BOS {named} asked for by tokenizer_config.json"
    if bos_id is None:
        raise RefimplError(
            f"{folder / 'tokenizer_config.json'}: add_bos_token is true, but no file names BOS",
            "bos_token in that file, or bos_token_id in config.json",
            "add one of them, or set add_bos_token to false",
        )
    return bos_id, f"BOS {bos_id} (from config.json) asked for by tokenizer_config.json"


def special_token(tokenizer: TextTokenizer, folder: Path, role: str) -> int | None:
    """The id of "bos_token" or "eos_token" as the files beside a tokenizer name it, or None."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        name = _read_settings(folder / file).get(role)
        name = name.get("content") if isinstance(name, dict) else name
        token_id = tokenizer.token_to_id(name) if isinstance(name, str) else None
        if token_id is not None:
            return token_id
    return None


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file beside the tokenizer; none if it does not exist."""
    with reading(path):
        return json_object(read_file(path), str(path), "an object") if path.exists() else {}
