"""What a hub's server answers, checked before huggingface_hub makes paths and files of it."""

import re
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import DOCUMENT

COMMIT, ETAG = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SIZES = range(1 << 63)


class Answers:
    """The checks of one download: the commit of its files, and the listed bytes of the next one."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.commit, self.most = endpoint, "", 0
        self._thread = threading.get_ident()

    def check(self, response: Any) -> None:
        """Refuse a response that names a commit or a blob by anything but its digits."""
        if threading.get_ident() != self._thread:  # of somebody else who uses the library
            return
        headers = response.headers
        if (commit := headers.get("X-Repo-Commit")) is not None:
            self.checked(COMMIT, commit, "a commit")
            if self.commit not in ("", commit):
                raise self._odd(f"sends a file of commit {commit}", f"one of {self.commit}")
        if response.request.method == "HEAD" and response.status_code < 400:
            etag = headers.get("X-Linked-Etag") or headers.get("ETag")
            if etag is not None:  # the library cuts all of these characters off
                self.checked(ETAG, etag.lstrip("W/").strip('"'), "an ETag")
        most = self.most if self.most and response.is_success else DOCUMENT
        response.iter_bytes = partial(self._bounded, response.iter_bytes, most)

    def _bounded(self, chunks: Any, most: int, *arguments: Any, **options: Any) -> Iterator[bytes]:
        """The chunks of a body; none is written after there are more than `most` bytes."""
        size = 0
        for chunk in chunks(*arguments, **options):
            size += len(chunk)
            if size > most:
                raise self._odd(f"sends more than {most:,} bytes", f"at most {most:,} bytes")
            yield chunk

    def checked(self, pattern: re.Pattern[str], value: object, what: str) -> str:
        """A commit or an ETag of the server, which the library makes a file name of."""
        if not isinstance(value, str) or not pattern.fullmatch(value):
            digits = "40 hexadecimal digits" + ("" if pattern is COMMIT else ", or 64")
            raise self._odd(f"answers with {what} that would be a path: {value!r:.80}", digits)
        return value

    def require_files(self, files: dict[str, Any]) -> None:
        """Refuse names that lead out of a folder, or that a system reads differently, and sizes."""
        for name, size in files.items():
            outside = {*name.split("/")} & {"", ".", ".."}
            if not name.isprintable() or {*name} & {*'\\:*?"<>|'} or outside:
                raise self._odd(f"lists a file {name!r:.80}", "relative paths of plain names")
            if not isinstance(size, int) or size not in _SIZES:
                problem = f"lists {name} without its size ({size!r:.40})"
                raise self._odd(problem, "the size of each file")

    def _odd(self, problem: str, expected: str) -> RefimplError:
        """The error for an answer that no hub gives, unless its files have just changed."""
        remedy = "check HF_ENDPOINT; if a new commit has just been made, repeat the command"
        return RefimplError(f"{self.endpoint} {problem}", expected, remedy)


@contextmanager
def checked_answers(endpoint: str) -> Iterator[Answers]:
    """Check what the library receives in this thread; it prints nothing meanwhile.

    Its own client of the Xet storage, which no check sees, is off: files come over HTTP.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    answers, hooks = Answers(endpoint), get_session().event_hooks["response"]
    verbosity, xet = logging.get_verbosity(), constants.HF_HUB_DISABLE_XET
    hooks.append(answers.check)
    constants.HF_HUB_DISABLE_XET = True
    logging.set_verbosity(logging.CRITICAL)
    if silenced := not (are_progress_bars_disabled() or sys.stderr.isatty()):
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield answers
    finally:
        if silenced:
            enable_progress_bars()
        logging.set_verbosity(verbosity)
        constants.HF_HUB_DISABLE_XET = xet
        hooks[:] = [hook for hook in hooks if hook != answers.check]


def require_space(folder: Path, size: int, name: str) -> None:
    """Refuse to download more than the disk of the cache has space for."""
    existing = next(x for x in (folder, *folder.parents) if x.exists())
    if size > (free := shutil.disk_usage(existing).free):
        raise RefimplError(
            f"{name} has {size:,} bytes to download, and the disk of {folder.parent} {free:,} free",
            "enough space for all files",
            "free some space, or set HF_HUB_CACHE to another disk",
        )
