"""The tokenizer of a model, and its rule about what stands before a text."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.tokens.disk import parsed, reading


def read_tokenizer(path: Path) -> Any:
    """Open a `tokenizer.json`, without truncation and padding.

    Args:
        path: The file.

    Returns:
        A `tokenizers.Tokenizer`.

    Raises:
        RefimplError: The file is missing, unreadable or no tokenizer; the `tokenizers` library is
            missing.

    Source:
        Ours.

    Example:
        >>> read_tokenizer(Path("fixtures/llama/tokenizer.json")).get_vocab_size()
        259
    """
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


def of_text(encoding: Any) -> tuple[npt.NDArray[np.int64], list[int], npt.NDArray[np.bool_]]:
    """Part what a tokenizer made of a text from what its post-processor put around it.

    Args:
        encoding: A `tokenizers.Encoding`.

    Returns:
        Ids of the text, [N]; the special ids before it; which ids are the text's.

    Source:
        Ours.

    Example:
        >>> tokenizer = read_tokenizer(Path("fixtures/llama/tokenizer.json"))
        >>> of_text(tokenizer.encode("be"))[:2]
        (array([68, 71]), [1])
    """
    ids = np.array(encoding.ids, np.int64)
    mine = np.array([sequence is not None for sequence in encoding.sequence_ids], np.bool_)
    return ids[mine], ids[: mine.argmax()].tolist() if mine.any() else [], mine


def bos_rule(
    tokenizer: Any, folder: Path, front: list[int], bos_id: int | None
) -> tuple[int | None, str]:
    """Which id begins a text, and who says so.

    Args:
        tokenizer: From `read_tokenizer`.
        folder: Where `tokenizer_config.json` and `special_tokens_map.json` are looked for.
        front: What the post-processor puts before a text (Llama 3, Gemma; the only voice in files
            that transformers 5 saves); `add_bos_token` is what older files say beside it.
        bos_id: `bos_token_id` of the model's `config.json`.

    Returns:
        The id, or None where nothing is put before a text, and the reason.

    Raises:
        RefimplError: BOS asked for and not named, or more than one token before a text.

    Source:
        Ours; see `text_tokens` for how transformers differs.

    Example:
        >>> folder = Path("fixtures/llama")
        >>> bos_rule(read_tokenizer(folder / "tokenizer.json"), folder, [1], None)
        (1, 'BOS 1 added by tokenizer.json')
    """
    wish = _read_settings(folder / "tokenizer_config.json").get("add_bos_token")
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
    found = special_token(tokenizer, folder, "bos_token")
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


def special_token(tokenizer: Any, folder: Path, role: str) -> int | None:
    """The id of a special token, as the files beside a tokenizer name it.

    Args:
        tokenizer: From `read_tokenizer`.
        folder: Where `tokenizer_config.json` and `special_tokens_map.json` are looked for.
        role: "bos_token" or "eos_token".

    Returns:
        The id, or None where neither file names a token of this tokenizer.

    Raises:
        RefimplError: One of the files is malformed.

    Source:
        Ours.

    Example:
        >>> folder = Path("fixtures/llama")
        >>> special_token(read_tokenizer(folder / "tokenizer.json"), folder, "eos_token")
        2
    """
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        name = _read_settings(folder / file).get(role)
        name = name.get("content") if isinstance(name, dict) else name
        found: int | None = tokenizer.token_to_id(name) if isinstance(name, str) else None
        if found is not None:
            return found
    return None


def _read_settings(path: Path) -> dict[str, Any]:
    with reading(path):
        if not path.exists():
            return {}
        settings = parsed(path.read_bytes(), str(path))
    if not isinstance(settings, dict):
        raise RefimplError(f"{path} holds no JSON object", "an object", "get the file again")
    return settings
