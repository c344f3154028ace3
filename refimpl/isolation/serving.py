"""The side of a child process, which starts without site-packages' start files: see `ChildProcess`.

It imports as little as possible: a command with a text waits for it.
"""

import _thread
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def serve(parent: int, codec: str) -> None:
    """Make the object of the first request, and answer the others, coded by pickle or marshal."""
    _thread.start_new_thread(_follow, (parent,))
    coder = _module(codec)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    made: Any = None

    def answer(action: "Callable[[], Any]", hand_over: bool = True) -> None:
        coder.dump(_outcome(action, hand_over), answers)
        answers.flush()

    def make(maker: str, arguments: "tuple[Any, ...]", memory: int | None) -> None:
        nonlocal made
        _limit(memory)
        module, _, function = maker.partition(":")
        made = getattr(_module(module), function)(*arguments)

    try:
        request = coder.load(requests)
        answer(lambda: make(*request), False)
        while True:
            method, arguments = coder.load(requests)
            answer(lambda: getattr(made, method)(*arguments))  # noqa: B023
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass


def _follow(parent: int) -> None:
    """End this process when its parent was killed, whatever a library is doing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _outcome(action: "Callable[[], Any]", hand_over: bool) -> "tuple[bool, Any]":
    """Whether something failed; its result if it is wanted, or what went wrong."""
    try:
        value = action()
        return False, value if hand_over else None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        errors = sys.modules.get("refimpl.errors")
        if errors is not None and isinstance(error, errors.RefimplError):
            return True, error
        why = " ".join(str(error).split())
        return True, f"{type(error).__name__}: {why}" if why else type(error).__name__


def _module(name: str) -> "Any":
    __import__(name)
    return sys.modules[name]


def _limit(memory: int | None) -> None:
    """Limit the private memory of this process."""
    try:
        import resource  # not on Windows

        if memory is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    except (ImportError, OSError, ValueError):
        pass
