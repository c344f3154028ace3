"""A library in a process of its own: whatever bent input does to that process, ours goes on."""

import os
import signal
import sys
from collections.abc import Callable, Iterable
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
        self, maker: Any, *arguments: Any, name: str, seconds: float, refused: tuple[str, str]
    ) -> None:
        from concurrent.futures import ProcessPoolExecutor  # slow, and most commands start none
        from multiprocessing import get_context

        self._name, self._seconds, self._refused = name, seconds, refused
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _begin)
        main, before = sys.modules["__main__"], _interrupts("SIG_BLOCK")  # Ctrl-C is for us alone
        sys.modules["__main__"] = ModuleType("__main__")  # a child would run the user's script
        try:
            started = self._pool.submit(_imported, maker)
        finally:
            sys.modules["__main__"] = main
            _interrupts("SIG_SETMASK", before)
        try:
            self._process = started.result()
        except BrokenExecutor as error:
            raise RefimplError(f"{name}: its process does not start", *refused) from error
        self.call(maker, *arguments)

    def call(self, method: Any, *arguments: Any, seconds: float | None = None) -> Any:
        """The result of a method by its name; any failure of the process is a RefimplError."""
        limit = seconds or self._seconds
        try:
            return self._pool.submit(_result, method, arguments).result(limit)
        except ChildFailure as error:
            problem = str(error)
        except TimeoutError:
            problem = f"took longer than {round(limit, 1):g} s"
            self._end()
        except BrokenExecutor:
            problem = "ended its process"
        except KeyboardInterrupt:
            self._end()
            raise
        raise RefimplError(f"{self._name}: {problem}", *self._refused)

    def _end(self) -> None:
        """Kill the process, also if the library never returns."""
        os.kill(self._process, getattr(signal, "SIGKILL", signal.SIGTERM))


def _interrupts(how: str, signals: Iterable[int] = (signal.SIGINT,)) -> Iterable[int]:
    """Change which signals wait, for this thread and what it starts; which did before."""
    if sys.platform == "win32":
        return ()
    return signal.pthread_sigmask(getattr(signal, how), signals)


class ChildFailure(Exception):
    """What the library raised, in words: its own classes need not exist in our process."""


def limit_memory(memory: int) -> None:
    """Limit the private memory of this process, where the system has such a limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def _begin() -> None:
    """Print nothing, and end with the parent, even if that is killed."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    from multiprocessing import parent_process

    cast(Any, parent_process()).join()
    os._exit(1)


def _imported(_: Callable[..., Any]) -> int:
    """The number of this process, when it has imported the module of a function."""
    return os.getpid()


def _result(method: Any, arguments: tuple[Any, ...]) -> Any:
    """The result of a method of the object; or of the function that makes it, nothing."""
    global _isolated
    try:
        if isinstance(method, str):
            return getattr(_isolated, method)(*arguments)
        _isolated = method(*arguments)
    except RefimplError:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        why = " ".join(str(error)[:2000].split())
        raise ChildFailure(f"{type(error).__name__}: {why}".removesuffix(": ")) from None
