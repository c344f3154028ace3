"""One run at a time at one file."""

import errno
import os
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: no lock, so two runs at once are the user's to avoid
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems that have none


def can_lock() -> bool:
    """Whether this system has locks."""
    return fcntl is not None


def locked(file: IO[Any], path: Path) -> bool:
    """Lock an open file until it is closed, unless another run has it or has just removed it.

    Args:
        file: The file, opened for writing.
        path: Its name.

    Returns:
        Whether it is ours; also true where the system has no locks. A killed run holds none.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "lock")
        ...     with path.open("wb") as one, path.open("wb") as other:
        ...         locked(one, path), locked(other, path)
        (True, False)
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
