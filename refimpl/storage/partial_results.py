"""The results of a run so far, in a file, so that a killed run can be resumed."""

import base64
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.storage.file_system import foreign, open_file, open_own, writing
from refimpl.storage.lock import locked

K = TypeVar("K", bound=int | str)
V = TypeVar("V")

Decode = Callable[[str, Any], tuple[Any, Any]]
"""The key and value that those of a line stand for."""

MARK = b"refimpl: partial results\n"  # the first line of each file
DIGEST = 16  # hexadecimal digits of the digest of a line
NPY = "npy"  # key of an array


class ResumableError(RefimplError):
    """An error that does not come again when the run is resumed, so that its results stay."""


class PartialResultsError(ResumableError):
    """The file holds results that this run must leave alone, or another run is writing it."""


def recurs(error: BaseException | None) -> bool:
    """Whether an error comes again when the run is resumed: one of the input or of the disk."""
    recurring = RefimplError | OSError | ArithmeticError  # the last: a number left its range
    return isinstance(error, recurring) and not isinstance(error, ResumableError)


def holds_results(path: Path) -> bool:
    """Whether a file holds partial results of ours, and not the identity of their run alone."""
    if not path.is_file():
        return False
    with open_file(path) as file:
        return file.readline() == MARK and all(file.readline().endswith(b"\n") for _ in range(2))


def partial_results_path(output: Path) -> Path:
    """The file beside `output` that holds the partial results of a run."""
    return output.with_name(f"{output.name}.part")


class PartialResults(Generic[K, V]):
    """A file of lines: our mark, the identity of the run, then the results of each work unit.

    A line is the digest of all lines up to its end, and JSON. Every line is on the disk before
    `add` returns; a line that a kill left incomplete is dropped, and so is an identity without
    results. The results of the same run are continued; a file of another run is refused, and so is
    one without our mark, or with a damaged line. Floats and arrays come back bit for bit. An error
    that recurs removes the file, unless the run was meant to be resumed. The identity is everything
    that the results depend on. A line is damaged, too, if `decode` raises ValueError, TypeError or
    LookupError. `check` raises an error if what the results depend on has changed since; nothing is
    kept then.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        resume: bool,
        decode: Decode | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.path, self.results, self._resume = path, dict[K, V](), resume
        self._ours = False
        self._check = check or (lambda: None)
        self._decode: Decode = decode or _unchanged
        self._digest = hashlib.sha256()
        with writing(path):
            self._file = open_own(path)
        try:
            self._begin(json.loads(json.dumps(identity)))
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # what `add` could not write: it told of that
            self._file.close()
        if self._ours and recurs(error) and not (self._resume and holds_results(self.path)):
            self.path.unlink(missing_ok=True)

    def add(self, results: Mapping[K, V]) -> None:
        """Keep the results of a work unit: numbers, strings, arrays, lists and objects by key."""
        self._check()
        self._write(results)
        self.results.update(results)

    def discard(self) -> None:
        """Remove the file: nothing may be resumed from it."""
        self.path.unlink(missing_ok=True)

    def _begin(self, identity: Mapping[str, Any]) -> None:
        """Read what the file holds, or write its first line."""
        with writing(self.path):
            free = locked(self._file, self.path)
        if not free:
            raise PartialResultsError(
                f"{self.path}: another run is writing it",
                "one run at a time for one output",
                "wait until it ends, or choose another -o",
            )
        with writing(self.path):
            self._file.seek(0)
            content = self._file.read()
        if not (content.startswith(MARK) or MARK.startswith(content)):  # half of it after a kill
            error = foreign(self.path)
            raise PartialResultsError(error.problem, error.expected, error.remedy)
        self._ours = True
        *complete, _ = content[len(MARK) :].split(b"\n")
        if len(complete) < 2 and complete != [self._line(identity)]:  # no results, of any run
            with writing(self.path):
                self._file.truncate(0)
                self._file.write(MARK)
            self._digest = hashlib.sha256()
            self._write(identity)
            return
        self._digest = hashlib.sha256()
        for number, line in enumerate(complete):
            self._read(number, line, identity)
        with writing(self.path):
            self._file.truncate(len(MARK) + sum(len(line) + 1 for line in complete))

    def _read(self, number: int, line: bytes, identity: Mapping[str, Any]) -> None:
        """Read one line: the identity if it is the first, else results."""
        digest, _, text = line.partition(b" ")
        try:
            if digest != self._next_digest(text):
                raise ValueError("it has another digest")
            row = json.loads(text, object_hook=_arrays)
            if number:
                self.results.update(self._decode(key, value) for key, value in row.items())
        except (ValueError, TypeError, LookupError, AttributeError, EOFError) as error:
            raise PartialResultsError(
                f"{self.path}, line {number + 2}, is damaged ({error})",
                "lines that an earlier run wrote",
                "remove the file to start anew",
            ) from error
        if number == 0 and row != identity:
            other = row if isinstance(row, dict) else {}
            keys = other.keys() | identity.keys()
            names = [key for key in sorted(keys) if other.get(key) != identity.get(key)]
            raise PartialResultsError(
                f"{self.path} belongs to another run: {', '.join(names)} differ",
                "the same model, tokens, options and versions",
                "repeat the command of that run, or remove the file to start anew",
            )

    def _next_digest(self, text: bytes) -> bytes:
        """The digest of a line: of its text and all lines before it."""
        self._digest.update(text)
        return self._digest.hexdigest()[:DIGEST].encode()

    def _line(self, row: Mapping[Any, Any]) -> bytes:
        """The next line of the file."""
        text = json.dumps(row, default=_text).encode()
        return self._next_digest(text) + b" " + text

    def _write(self, row: Mapping[Any, Any]) -> None:
        with writing(self.path):
            self._file.write(self._line(row) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def partial_results(
    path: Path | None,
    identity: Mapping[str, Any],
    resume: bool,
    decode: Decode | None = None,
    check: Callable[[], None] | None = None,
) -> AbstractContextManager[PartialResults[Any, Any] | None]:
    """The partial results in a file, or None without a file."""
    if path is not None:
        return PartialResults(path, identity, resume, decode, check)
    if resume:
        raise RefimplError(
            "resume without a file to resume from",
            "part, the file of the earlier run",
            "add part, or omit resume",
        )
    return nullcontext()


@contextmanager
def until_written(path: Path | None, resume: bool) -> Iterator[None]:
    """Remove partial results after the block that writes the result, or fails for good."""
    try:
        yield
    except BaseException as error:
        if recurs(error) and path is not None and not resume:
            path.unlink(missing_ok=True)
        raise
    if path is not None:
        path.unlink(missing_ok=True)


def _unchanged(key: str, value: Any) -> tuple[Any, Any]:
    return key, value


def _text(value: Any) -> Any:
    """JSON for the numbers of NumPy, and for an array: its bytes, shape and dtype."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} in partial results")
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {NPY: base64.b64encode(file.getvalue()).decode()}


def _arrays(row: dict[str, Any]) -> dict[str, Any] | Array:
    """The array that an object stands for, or the object itself."""
    if row.keys() != {NPY}:
        return row
    return np.load(io.BytesIO(base64.b64decode(row[NPY])), allow_pickle=False)
