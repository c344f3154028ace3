"""What a run has found so far, kept in a file so that a killed run can be taken up again."""

import base64
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.storage.lock import locked

K = TypeVar("K", bound=int | str)
V = TypeVar("V")

NPY = "npy"  # key of an array


class KeptError(RefimplError):
    """An error that leaves what was found so far where it is, to be taken up."""


def final(error: BaseException | None) -> bool:
    """Whether an error would come again if the run were taken up.

    Args:
        error: What ended the run, or None.

    Returns:
        True for errors of the input and of the disk; False for a kill, and for `KeptError`.
    """
    known = RefimplError | OSError | ArithmeticError  # the last: a number that left its range
    return isinstance(error, known) and not isinstance(error, KeptError)


class PartialResultsError(KeptError):
    """What an earlier run, or one that still runs, has found is in the way; it is left alone."""


def part_path(output: Path) -> Path:
    """Where a run that writes `output` keeps what it has found so far.

    Args:
        output: Where its result goes.

    Returns:
        A file beside it.

    Example:
        >>> part_path(Path("runs/base.json")).name
        'base.json.part'
    """
    return output.with_name(f"{output.name}.part")


class PartialResults(Generic[K, V]):
    """A file of JSON lines: what the run is, then what each unit of work gave.

    Every unit is on the disk before `add` returns; a line that was being written when the run was
    killed is dropped. Floats come back bit for bit, arrays too. A `final` error leaves no file,
    unless the run was to be taken up.

    Args:
        path: The file.
        run: What the run is: everything that its numbers depend on.
        resume: Whether to take up what is there; where nothing is there, the run starts.
        meaning: What a key and a value in a line stand for; the same if None. Where it raises
            ValueError, TypeError or LookupError, the file is damaged.

    Raises:
        PartialResultsError: The file exists and is not to be taken up, is of another run, or
            damaged; another
            run is writing it.
        RefimplError: It cannot be written.

    Source:
        Ours.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "out.json.part")
        ...     with PartialResults(path, {"window": 512}, resume=False) as part:
        ...         part.add({"a": [-3.5, np.arange(2)]})
        ...     with PartialResults(path, {"window": 512}, resume=True) as part:
        ...         part.found
        {'a': [-3.5, array([0, 1])]}
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Any],
        resume: bool,
        meaning: Callable[[str, Any], tuple[K, V]] | None = None,
    ) -> None:
        self.path, self.found, self._meaning = path, dict[K, V](), meaning
        self._kept = resume
        known = json.loads(json.dumps(run))
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise _unwritable(path, error) from error
        try:
            self._begin(known, resume)
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
        self._file.close()
        if final(error) and not self._kept:
            self.path.unlink(missing_ok=True)

    def add(self, found: Mapping[K, V]) -> None:
        """Keep what a unit gave.

        Args:
            found: By key: numbers, strings, arrays, and lists and objects of these.

        Raises:
            RefimplError: The disk is full.
        """
        self._write(found)
        self.found.update(found)

    def _begin(self, known: Mapping[str, Any], resume: bool) -> None:
        """Take up what is there, or write the first line."""
        if not locked(self._file, self.path):
            raise PartialResultsError(
                f"{self.path}: another run is writing it",
                "one run at a time for one output",
                "wait for it to end, or choose another -o",
            )
        lines = _whole_lines(self.path)
        if lines and not resume:
            raise PartialResultsError(
                f"{self.path} holds what an earlier run has found so far",
                "no such file, or --resume",
                "add --resume to take it up, or remove the file to start anew",
            )
        for number, line in enumerate(lines):
            self._take(number, line, known)
        try:
            self._file.truncate(sum(len(line) for line in lines))
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if not lines:
            self._write(known)

    def _take(self, number: int, line: bytes, known: Mapping[str, Any]) -> None:
        """Take up one line."""
        try:
            row = json.loads(line, object_hook=_arrays)
            if number:
                for key, value in row.items():
                    k, v = (key, value) if self._meaning is None else self._meaning(key, value)
                    self.found[k] = v
        except (ValueError, TypeError, LookupError, AttributeError, EOFError) as error:
            raise PartialResultsError(
                f"{self.path}, line {number + 1}, is damaged ({error})",
                "what an earlier run wrote",
                "remove the file to start anew",
            ) from error
        if number == 0 and row != known:
            keys = row.keys() | known.keys() if isinstance(row, dict) else known.keys()
            other = [k for k in keys if not isinstance(row, dict) or row.get(k) != known.get(k)]
            raise PartialResultsError(
                f"{self.path} is of another run: {', '.join(sorted(other))} differ",
                "the same model, tokens, options and versions",
                "repeat that run's command, or remove the file to start anew",
            )

    def _write(self, row: Mapping[Any, Any]) -> None:
        try:
            self._file.write(json.dumps(row, default=_text).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error


def kept_in(
    path: Path | None,
    run: Mapping[str, Any],
    resume: bool,
    meaning: Callable[[str, Any], tuple[Any, Any]] | None = None,
) -> AbstractContextManager[PartialResults[Any, Any] | None]:
    """Keep what is found in a file, or nowhere.

    Args:
        path: The file, or None.
        run: What the run is.
        resume: Whether to take up what is there.
        meaning: What a key and a value in a line stand for, as for `PartialResults`.

    Returns:
        A context with the part, or with None.

    Raises:
        RefimplError: See `PartialResults`; nothing to take up without a file.
    """
    if path is not None:
        return PartialResults(path, run, resume, meaning)
    if resume:
        raise RefimplError(
            "resume without a file to take up", "part, the file that was given before", "give part"
        )
    return nullcontext()


@contextmanager
def written(path: Path | None, resume: bool) -> Iterator[None]:
    """Remove what was kept when the result is written, or cannot be and nobody takes it up.

    Args:
        path: The file, or None.
        resume: Whether what is kept outlives an error.

    Yields:
        Nothing: the result is written meanwhile.
    """
    try:
        yield
    except BaseException as error:
        if final(error) and path is not None and not resume:
            path.unlink(missing_ok=True)
        raise
    if path is not None:
        path.unlink()


def _text(value: Any) -> Any:
    """What JSON does not know: an array, its bytes, shape and dtype; a number of NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} in a part")
    file = io.BytesIO()
    np.save(file, value, allow_pickle=False)
    return {NPY: base64.b64encode(file.getvalue()).decode()}


def _arrays(row: dict[str, Any]) -> dict[str, Any] | Array:
    """The inverse."""
    if row.keys() != {NPY}:
        return row
    return np.load(io.BytesIO(base64.b64decode(row[NPY])), allow_pickle=False)


def _whole_lines(path: Path) -> list[bytes]:
    """Lines of a file that were written to their end."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _unwritable(path, error) from error
    return [line for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]


def _unwritable(path: Path, error: OSError) -> RefimplError:
    return RefimplError(
        f"{path}: cannot be written ({error.strerror})",
        "a folder that exists, may be written, and has room",
        "choose another place with -o",
    )
