"""The side of a child process, which imports as little as possible: a command waits for it."""

import _thread
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import IO, Any

MOST_PARTS = 1 << 16
PIECE = 1 << 20  # bytes that are read at once: a length alone takes no memory


def write_parts(stream: IO[bytes], parts: Iterable[bytes]) -> None:
    """Write byte strings: how many, the length of each, and each; numbers have eight bytes."""
    every = list(parts)
    numbers = b"".join(n.to_bytes(8, "little") for n in (len(every), *map(len, every)))
    for content in (numbers, *every):
        view = memoryview(content)
        while view:
            view = view[stream.write(view) :]
    stream.flush()


def read_parts(stream: IO[bytes], largest: int) -> list[bytes]:
    """Read what `write_parts` wrote; EOFError before its end, ValueError for more bytes."""

    def content(size: int) -> bytes:
        read = bytearray()
        while len(read) < size:
            piece = stream.read(min(size - len(read), PIECE))
            if not piece:
                raise EOFError
            read += piece
        return bytes(read)

    count = int.from_bytes(content(8), "little")
    if count > MOST_PARTS:
        raise ValueError(f"{count} parts")
    sizes = [int.from_bytes(content(8), "little") for _ in range(count)]
    if sum(sizes) > largest:
        raise ValueError(f"{sum(sizes)} bytes")
    return [content(size) for size in sizes]


def serve(parent: int) -> None:
    """Make the object of the first request, and answer the others: a name and arguments each."""
    _thread.start_new_thread(_follow, (parent,))
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    made: Any = None

    def action(name: bytes, *arguments: bytes) -> tuple[bytes, ...]:
        nonlocal made
        module, _, function = name.decode().rpartition(":")
        if not module:
            results: tuple[bytes, ...] = getattr(made, function)(*arguments)
            return results
        __import__(module)
        made = getattr(sys.modules[module], function)(*arguments)
        return ()

    try:
        while True:
            write_parts(answers, _outcome(action, read_parts(requests, sys.maxsize)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass


def _follow(parent: int) -> None:
    """End this process when its parent was killed, whatever a library is doing."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _outcome(action: Callable[..., tuple[bytes, ...]], request: list[bytes]) -> list[bytes]:
    """An empty part and the results; "refused" and a RefimplError; or "failed" and the reason."""
    try:
        return [b"", *action(*request)]
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of a library in Rust is no Exception
        errors = sys.modules.get("refimpl.errors")
        if errors is not None and isinstance(error, errors.RefimplError):
            texts = ["refused", error.expected, error.remedy, *error.problem.split("\n  ")]
        else:
            why = " ".join(str(error).split())
            texts = ["failed", f"{type(error).__name__}: {why}" if why else type(error).__name__]
        return [text.encode("utf-8", "backslashreplace") for text in texts]


def limit_memory(memory: int) -> None:
    """Limit the private memory of this process, where the system has such a limit."""
    try:
        import resource  # not on Windows

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    except (ImportError, OSError, ValueError):
        pass
