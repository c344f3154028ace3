"""A library in a process of its own: whatever bent input does to that process, ours goes on."""

import os
import sys
from threading import Thread
from typing import TYPE_CHECKING
from weakref import finalize

from refimpl.errors import RefimplError
from refimpl.isolation.serving import read_parts, write_parts

if TYPE_CHECKING:
    import subprocess

_START = "import sys; sys.path[:] = {!r}; from refimpl.isolation.serving import serve; serve({})"
_START_FLAGS = ("-I", "-S")  # no environment, no site: our sys.path is all that the child needs
_LONGEST = 2000  # characters of a failure that a child reports


class ChildProcess:
    """A process that makes an object by a "module:function", and calls its methods.

    They take and return byte strings: nothing that a child answers is unpickled.
    """

    def __init__(
        self,
        maker: str,
        *arguments: bytes,
        name: str,
        seconds: float,
        largest: int,  # bytes of an answer
        refused: tuple[str, str],  # accepted input and next step, for messages
    ) -> None:
        import subprocess  # slow, and most uses of the package start no process

        self._name, self._seconds, self._largest, self._refused = name, seconds, largest, refused
        flags = [*_START_FLAGS, "-B"] if sys.dont_write_bytecode else _START_FLAGS
        self._process = subprocess.Popen(
            [sys.executable, *flags, "-c", _START.format(sys.path, os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._end = finalize(self, _ended, self._process)
        self.call(maker, *arguments)

    def call(self, method: str, *arguments: bytes, seconds: float | None = None) -> list[bytes]:
        """The results of a method; any failure of the child is a RefimplError."""
        limit = self._seconds if seconds is None else seconds
        outcome: list[list[bytes] | Exception] = []

        def exchange() -> None:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                write_parts(self._process.stdin, [method.encode(), *arguments])
                outcome.append(read_parts(self._process.stdout, self._largest))
            except Exception as error:  # of a thread, which nobody else would see
                outcome.append(error)

        # A thread can be left waiting, also for a process that the child started.
        thread = Thread(target=exchange, daemon=True)
        try:
            thread.start()
            thread.join(limit)
        except BaseException:
            self._end()
            raise
        match outcome:
            case [[b"", *results]]:
                return results
            case [[b"refused", expected, remedy, problem, *details]]:
                more = [_text(part) for part in details]
                raise RefimplError(_text(problem), _text(expected), _text(remedy), more)
            case [[b"failed", words]]:
                raise RefimplError(f"{self._name}: {_text(words)}", *self._refused)
            case []:
                raise self.unusable(f"took longer than {round(limit, 1):g} s")
            case [OSError() | EOFError()]:
                self._end()
                raise self.unusable(f"ended its process ({self._process.returncode})")
            case _:
                raise self.unusable()

    def unusable(self, why: str = "gave an answer that cannot be used") -> RefimplError:
        """The error for a child that is not asked again."""
        self._end()
        return RefimplError(f"{self._name}: {why}", *self._refused)


def _text(part: bytes) -> str:
    return part[:_LONGEST].decode("utf-8", "replace")


def _ended(process: "subprocess.Popen[bytes]") -> None:
    """End a child and close its pipes."""
    with process:
        process.kill()
