"""A library in a process of its own: whatever it does to that process, ours gets an answer.

Some libraries panic, abort, never return or take all memory on bent input. The child gets objects
of ours only, and what it prints is dropped.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from threading import Timer
from typing import Any
from weakref import finalize

from refimpl.errors import RefimplError

_START = "import sys; sys.path[:] = {}; from refimpl.isolation.child_process import serve; serve()"


class ChildProcess:
    """A process that makes an object, and calls its methods.

    Args:
        maker: Where the function is that makes the object, as "module:function".
        arguments: Its arguments.
        name: What is called, for messages.
        seconds: The longest that a call may take.
        memory: The largest private memory of the process, bytes; None for no limit.
        refused: Accepted input and next step, for messages.
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
    ) -> None:
        self._name, self._seconds, self._refused = name, seconds, refused
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(sys.path)],
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
            pickle.dump(request, process.stdin)
            process.stdin.flush()
            failure, answer = pickle.load(process.stdout)
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


def serve() -> None:
    """The child: make the object of the first request, and answer the others."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        maker, arguments, memory = pickle.load(requests)
        module, _, function = maker.partition(":")
        made = _answer(answers, lambda: _made(module, function, arguments, memory), False)
        while True:
            method, arguments = pickle.load(requests)
            _answer(answers, lambda: getattr(made, method)(*arguments))  # noqa: B023


def _made(module: str, function: str, arguments: tuple[Any, ...], memory: int | None) -> Any:
    """The object, under the limit of memory."""
    if memory is not None:
        with contextlib.suppress(ImportError, OSError, ValueError):  # Windows, macOS
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    return getattr(import_module(module), function)(*arguments)


def _answer(answers: Any, action: Callable[[], Any], hand_over: bool = True) -> Any:
    """Do something, and hand over its result, or what went wrong."""
    value = None
    try:
        value = action()
        answer = (False, value if hand_over else None)
    except RefimplError as error:
        answer = (True, error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        why = " ".join(str(error).split())
        answer = (True, f"{type(error).__name__}: {why}" if why else type(error).__name__)
    pickle.dump(answer, answers)
    answers.flush()
    return value
