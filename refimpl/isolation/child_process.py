"""A library in a process of its own: whatever it does to that process, ours gets an answer.

Some libraries panic, abort, never return or take all memory on bent input. The child gets objects
of ours only, and what it prints is dropped.
"""

import contextlib
import marshal
import os
import pickle
import sys
from threading import Timer
from typing import TYPE_CHECKING, Any
from weakref import finalize

from refimpl.errors import RefimplError

if TYPE_CHECKING:
    import subprocess

_START = (
    "import sys; sys.path[:] = {!r}; from refimpl.isolation.serving import serve; serve({}, {!r})"
)
_START_FLAGS = ("-I", "-S")  # no environment, no site: our sys.path is all that the child needs


class ChildProcess:
    """A process that makes an object, and calls its methods.

    Args:
        maker: Where the function is that makes the object, as "module:function".
        arguments: Its arguments.
        name: What is called, for messages.
        seconds: The longest that a call may take.
        memory: The largest private memory of the process, bytes; None for no limit.
        refused: Accepted input and next step, for messages.
        plain: Whether only numbers, texts, bytes, None and tuples go to and fro; such a process
            starts faster.
    """

    def __init__(
        self,
        maker: str,
        arguments: tuple[Any, ...],
        *,
        name: str,
        seconds: float,
        memory: int | None,
        refused: tuple[str, str],
        plain: bool = False,
    ) -> None:
        import subprocess  # slow, and most uses of the package start no process

        self._name, self._seconds, self._refused = name, seconds, refused
        self._coder: Any = marshal if plain else pickle
        flags = [*_START_FLAGS, "-B"] if sys.dont_write_bytecode else _START_FLAGS
        start = _START.format(sys.path, os.getpid(), self._coder.__name__)
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._end = finalize(self, _ended, self._process)
        self._exchange((maker, arguments, memory))

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method; any failure of the child is a RefimplError."""
        return self._exchange((method, arguments))

    def _exchange(self, request: Any) -> Any:
        process, late = self._process, False

        def kill() -> None:
            nonlocal late
            late = True
            process.kill()

        timer = Timer(self._seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            self._coder.dump(request, process.stdin)
            process.stdin.flush()
            failure, answer = self._coder.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            code = process.wait()
            why = f"took longer than {self._seconds:g} s" if late else f"ended its process ({code})"
            raise self._error(why) from None
        except BaseException:
            self._end()
            raise
        finally:
            timer.cancel()
        if failure:
            raise answer if isinstance(answer, RefimplError) else self._error(answer)
        return answer

    def _error(self, why: str) -> RefimplError:
        return RefimplError(f"{self._name}: {why}", *self._refused)


def _ended(process: "subprocess.Popen[bytes]") -> None:
    """End a child and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
