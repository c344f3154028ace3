"""Locks: one run at a time writes a file."""

import errno
import os
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows has no locks: the user must not start two runs at once
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of file systems without locks


def can_lock() -> bool:
    """Whether this system has locks."""
    return fcntl is not None


def locked(file: IO[Any], path: Path) -> bool:
    """Lock an open file until it is closed; False if another run holds it or has just removed it.

    True where the system has no locks. A killed run holds none.
    """
    if not can_lock():
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return True
        raise
