"""The cache of tokenised texts: a folder with the ids of the long texts that were used last."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.storage.files import whole

FORMAT = 1  # of a file, and of the way in which a text is cut into pieces
TEXTS = 8  # that are kept
DIGEST = 32  # bytes of a SHA-256

Encoded = tuple[npt.NDArray[np.int32], tuple[int, ...]]  # ids, and those before every text


def token_cache_folder() -> Path | None:
    """`REFIMPL_CACHE` (empty: no cache), or `refimpl` in the user's folder of caches."""
    chosen = os.environ.get("REFIMPL_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    with suppress(RuntimeError):  # a user without a home has no cache
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "refimpl"
    return None


def cached_ids(
    folder: Path,
    tokenizer: str,
    text: Callable[[], Iterator[str]],
    encode: Callable[[Iterator[str]], Encoded],
) -> Encoded:
    """The ids of a text from the cache, or encoded and kept there if it does not hold them.

    The name of a file is the SHA-256 of the text, of the versions, and of `tokenizer`, which is
    that of `tokenizer.json`. If the text changes between the two times that it is read, the ids
    are kept for what was encoded.
    """
    digest = _digest(tokenizer)
    for _ in _hashed(text(), digest):
        pass
    kept = _kept(folder / f"{digest.hexdigest()}.ids")
    if kept is not None:
        return kept
    digest = _digest(tokenizer)
    encoded = encode(_hashed(text(), digest))
    with suppress(OSError, RefimplError):  # no output: without a cache, the next run takes longer
        _keep(folder / f"{digest.hexdigest()}.ids", encoded)
    return encoded


def _digest(tokenizer: str) -> Any:
    """A SHA-256 of all that decides the ids, but for the text."""
    from importlib.metadata import version  # slow, and only long texts need it

    return sha256(f"{FORMAT} {version('tokenizers')} {tokenizer} ".encode())


def _hashed(chunks: Iterator[str], digest: Any) -> Iterator[str]:
    """Chunks of a text, which the digest has seen when they are used."""
    for chunk in chunks:
        digest.update(chunk.encode())
        yield chunk


def _kept(path: Path) -> Encoded | None:
    """What `_keep` wrote, used again now; None if there is no such file, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        return None
    with suppress(OSError):
        path.touch()
    values = np.frombuffer(content, "<i4", offset=DIGEST)
    first = 1 + int(values[0])
    return values[first:], tuple(values[1:first].tolist())


def _keep(path: Path, encoded: Encoded) -> None:
    """Write ids to a file that others cannot read, and remove those that were not used lately."""
    ids, front = encoded
    values = np.concatenate([[len(front)], front, ids]).astype("<i4").tobytes()
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    with whole(path) as new:
        new.touch(0o600)
        new.write_bytes(sha256(values).digest() + values)
    by_use = sorted(path.parent.glob("*.ids"), key=lambda file: file.stat().st_mtime)
    for old in by_use[:-TEXTS]:
        old.unlink()
