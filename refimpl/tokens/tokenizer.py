"""The tokenizer of a model, and its rule for BOS."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.isolation.child_process import ChildProcess
from refimpl.loading.files.file_reading import json_object, read_file, reading
from refimpl.storage.file_system import MIB

TOKENIZER = 128 * MIB  # bytes of a tokenizer.json
SECONDS, MEMORY = 120.0, 2048 * MIB  # limits of the library, for one piece of a text


@dataclass(frozen=True)
class Encoding:
    """A text as ids.

    Args:
        ids: Ids of the text, [N].
        front: Special ids that the tokenizer's post-processor puts before them.
        places: First character of each id and the one after its last, [N, 2]; empty if they were
            not asked for.
    """

    ids: npt.NDArray[np.int32]
    front: tuple[int, ...]
    places: npt.NDArray[np.int32]


class TextTokenizer:
    """A `tokenizer.json`, without truncation and padding, in a process of its own.

    The library panics on some files, and aborts its process on others.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self._child = ChildProcess(
            "refimpl.isolation.tokenizers_library:Library",
            (content,),
            name=f"{path} is not a tokenizer that works",
            seconds=SECONDS,
            memory=MEMORY,
            refused=("the tokenizer.json of the model", "get it again, or pass ids with --tokens"),
            plain=True,
        )

    def encode(self, text: str, places: bool = False, special: bool = True) -> Encoding:
        """Encode a text; `special` asks for the post-processor's ids."""
        raw, of_text, ends = self._child.call("encode", text, special, places)
        unsigned = np.frombuffer(raw, np.uint32)
        ids = np.minimum(unsigned, np.iinfo(np.int32).max).astype(np.int32)  # no model has more
        is_text = np.frombuffer(of_text, np.bool_)
        front = tuple(ids[: is_text.argmax()].tolist()) if is_text.any() else ()
        pairs = np.frombuffer(ends, np.int32).reshape(-1, 2)
        return Encoding(ids[is_text], front, pairs[is_text] if places else pairs)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        token_id: int | None = self._child.call("token_to_id", token)
        return token_id

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, or None."""
        token: str | None = self._child.call("id_to_token", token_id)
        return token


def read_tokenizer(path: Path) -> TextTokenizer:
    """Open a `tokenizer.json`."""
    if find_spec("tokenizers") is None:
        raise RefimplError(
            "a text needs the tokenizers library, which is not installed",
            "refimpl with its extra [text]",
            "run pip install 'refimpl[text]', or pass ids with --tokens",
        )
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

    `front` holds the ids that the post-processor puts before a text. `add_bos_token` in
    `tokenizer_config.json` decides: false forbids BOS and true requires it; without it the
    post-processor decides. transformers 5 ignores `add_bos_token` beside a `tokenizer.json`;
    transformers 4 follows it in some classes.
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
