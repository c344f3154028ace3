"""What a run has found so far, kept in a file so that a killed run can be taken up again."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from refimpl.errors import RefimplError

Found = dict[int, tuple[float, bool]]
"""By number of the sequence: its summed log likelihood, and whether it is greedy."""


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


class Part:
    """A file of JSON lines: what the run is, then what each group of batches gave.

    Every group is on the disk before the next one starts; a line that was being written when the
    run was killed is dropped.

    Args:
        path: The file.
        run: What the run is: everything that its numbers depend on.
        resume: Whether to take up what is there; where nothing is there, the run starts.

    Raises:
        RefimplError: The file exists and is not to be taken up, is of another run, or damaged; it
            cannot be written.

    Source:
        Ours.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "out.json.part")
        ...     with Part(path, {"window": 512}, resume=False) as part:
        ...         part.add({0: (-3.5, False)})
        ...     with Part(path, {"window": 512}, resume=True) as part:
        ...         part.found
        {0: (-3.5, False)}
    """

    def __init__(self, path: Path, run: Mapping[str, Any], resume: bool) -> None:
        self.path, self.found, known = path, Found(), json.loads(json.dumps(run))
        lines = _whole_lines(path)
        if lines and not resume:
            raise RefimplError(
                f"{path} holds what an earlier run has found so far",
                "no such file, or --resume",
                "add --resume to take it up, or remove the file to start anew",
            )
        for number, line in enumerate(lines):
            try:
                row = json.loads(line)
                if number:
                    self.found |= {int(n): (float(nats), bool(g)) for n, (nats, g) in row.items()}
            except (ValueError, TypeError, AttributeError) as error:
                raise RefimplError(
                    f"{path}, line {number + 1}, is damaged ({error})",
                    "what an earlier run wrote",
                    "remove the file to start anew",
                ) from error
            if number == 0 and row != known:
                keys = row.keys() | known.keys() if isinstance(row, dict) else known.keys()
                other = [k for k in keys if not isinstance(row, dict) or row.get(k) != known.get(k)]
                raise RefimplError(
                    f"{path} is of another run: {', '.join(sorted(other))} differ",
                    "the same model, text or questions, options and versions",
                    "repeat that run's command, or remove the file to start anew",
                )
        try:
            self._file = path.open("r+b" if lines else "wb")
        except OSError as error:
            raise _unwritable(path, error) from error
        self._file.truncate(sum(len(line) for line in lines))
        self._file.seek(0, os.SEEK_END)
        if not lines:
            self._write(known)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, found: Found) -> None:
        """Keep what a group gave.

        Args:
            found: By number of the sequence.

        Raises:
            RefimplError: The disk is full.
        """
        self._write({str(n): list(value) for n, value in found.items()})
        self.found |= found

    def _write(self, row: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _whole_lines(path: Path) -> list[bytes]:
    """Lines of a file that were written to their end; none where there is no file."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unwritable(path, error) from error
    return [line for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]


def _unwritable(path: Path, error: OSError) -> RefimplError:
    return RefimplError(
        f"{path}: cannot be written ({error.strerror})",
        "a folder that exists, may be written, and has room",
        "choose another place with -o",
    )
