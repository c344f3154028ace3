"""The tokenizer of a model, and its rule for BOS."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.loading.file_reading import MIB, json_object, read_file, reading

TOKENIZER = 128 * MIB  # bytes of a tokenizer.json


def read_tokenizer(path: Path) -> Any:
    """Open a `tokenizer.json` as a `tokenizers.Tokenizer`, without truncation and padding."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise RefimplError(
            "a text needs the tokenizers library, which is not installed",
            "refimpl with its extra [text]",
            "run pip install 'refimpl[text]', or pass ids with --tokens",
        ) from error
    with reading(path):
        if not path.exists():
            raise RefimplError(
                f"no tokenizer at {path}",
                "the model's tokenizer.json",
                "put it there, or pass ids with --tokens FILE.npy or FILE.jsonl",
            )
        raw = read_file(path, TOKENIZER)
    try:
        tokenizer = Tokenizer.from_buffer(raw)
    except Exception as error:  # the library raises nothing more specific
        raise RefimplError(
            f"{path} is not a tokenizer ({error})",
            "the tokenizer.json of the model",
            "get the file again, or pass ids with --tokens",
        ) from error
    tokenizer.no_truncation()  # a file saved after training may truncate texts
    tokenizer.no_padding()
    return tokenizer


def of_text(encoding: Any) -> tuple[npt.NDArray[np.int64], list[int], npt.NDArray[np.bool_]]:
    """Separate a text's ids [N] from those that the tokenizer's post-processor added.

    Returns the text's ids, the special ids before them, and which of the encoding's ids are the
    text's.
    """
    ids = np.array(encoding.ids, np.int64)
    is_text = np.array([sequence is not None for sequence in encoding.sequence_ids], np.bool_)
    return ids[is_text], ids[: is_text.argmax()].tolist() if is_text.any() else [], is_text


def bos_rule(
    tokenizer: Any, folder: Path, front: list[int], bos_id: int | None
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


def special_token(tokenizer: Any, folder: Path, role: str) -> int | None:
    """The id of "bos_token" or "eos_token" as the files beside a tokenizer name it, or None."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        name = _read_settings(folder / file).get(role)
        name = name.get("content") if isinstance(name, dict) else name
        token_id: int | None = tokenizer.token_to_id(name) if isinstance(name, str) else None
        if token_id is not None:
            return token_id
    return None


def _read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file beside the tokenizer; none if it does not exist."""
    with reading(path):
        return json_object(read_file(path), str(path), "an object") if path.exists() else {}
