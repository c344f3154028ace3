"""A library in a process of its own: whatever bent input does to that process, ours goes on."""

import os
import signal
import sys
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from threading import Thread
from types import ModuleType
from typing import Any, cast

from refimpl.errors import RefimplError

_isolated: Any = None  # the object of a child process


class Isolated:
    """The object that `maker(*arguments)` makes in a process of its own.

    Messages say that `name` failed, and `refused`: accepted input and next step; a call takes at
    most so many seconds.
    """

    def __init__(
        self,
        maker: Any,
        *arguments: Any,
        name: str,
        seconds: float,
        refused: tuple[str, str],
    ) -> None:
        from concurrent.futures import (
            ProcessPoolExecutor,
        )  # slow, and most commands start none
        from multiprocessing import get_context

        self._name, self._seconds, self._refused, self._process = (
            name,
            seconds,
            refused,
            0,
        )
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin)
        main, posix = sys.modules["__main__"], sys.platform != "win32"
        before = (
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]) if posix else None
        )
        sys.modules["__main__"] = ModuleType(
            "__main__"
        )  # a child would run the user's script
        try:  # Ctrl-C is for us alone
            started = self._pool.submit(_imported, maker)
        finally:
            sys.modules["__main__"] = main
            if before is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._process = self._answer(None, started)
        self.call(maker, *arguments)

    def call(self, method: Any, *arguments: Any, seconds: float | None = None) -> Any:
        """The result of a method by its name; any failure of the process is a RefimplError."""
        return self._answer(seconds or self._seconds, _result, method, arguments)

    def _answer(self, limit: float | None, task: Any, *arguments: Any) -> Any:
        """What a task returns, or one that is submitted; the process is killed if it is late."""
        try:
            submitted = self._pool.submit(task, *arguments) if callable(task) else task
            answer, problem = submitted.result(limit)
            if not problem:
                return answer
        except BrokenExecutor:
            problem = "ended its process"
        except (TimeoutError, KeyboardInterrupt) as error:
            if self._process:  # else it is starting, and ends with us
                os.kill(self._process, getattr(signal, "SIGKILL", signal.SIGTERM))
            if isinstance(error, KeyboardInterrupt):
                raise
            problem = f"took longer than {round(limit or 0, 1):g} s"
        raise RefimplError(f"{self._name}: {problem}", *self._refused)


def limit_memory(memory: int) -> None:
    """Limit the private memory of this process, where the system has such a limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _begin() -> None:
    """Print nothing, and end with the parent, even if that is killed."""
    from multiprocessing import parent_process

    def follow() -> None:
        cast(Any, parent_process()).join()
        os._exit(1)

    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    Thread(target=follow, daemon=True).start()


def _imported(_: Any) -> tuple[int, str]:
    """The number of this process, when it has imported the module of a function."""
    return os.getpid(), ""


def _result(method: Any, arguments: tuple[Any, ...]) -> tuple[Any, str]:
    """The result of a method of the object; or of the function that makes it, nothing.

    What the library raises is a text: its own classes need not exist in our process.
    """
    global _isolated
    try:
        if isinstance(method, str):
            return getattr(_isolated, method)(*arguments), ""
        _isolated = method(*arguments)
        return None, ""
    except RefimplError:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        why = " ".join(str(error)[:2000].split())
        return None, f"{type(error).__name__}: {why}".removesuffix(": ")
