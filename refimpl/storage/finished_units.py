"""The results of a run so far, a file for each work unit, in a folder named by what they need."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.storage.arrays import DAMAGES, is_tree, read_tree, write_tree
from refimpl.storage.file_system import ResumableError, foreign, is_folder, is_own, writing
from refimpl.storage.work_folder import work_path

RUN, UNFINISHED = re.compile("[0-9a-f]{32}"), re.compile(r"\.[0-9a-f]{32}")  # names we give


class FinishedUnits:
    """The finished units of one run by their names; `check` is called before one is written."""

    def __init__(self, folder: Path, check: Callable[[], None] = lambda: None) -> None:
        self.folder, self._check = folder, check
        if os.path.lexists(folder) and not is_folder(folder):
            raise foreign(folder)
        with writing(folder):
            folder.mkdir(exist_ok=True)

    @property
    def earlier(self) -> dict[str, Any]:
        """Results that earlier runs have added, by key."""
        names = [name for name in sorted(os.listdir(self.folder)) if not UNFINISHED.fullmatch(name)]
        units = [unit for unit in map(self.read, names) if isinstance(unit, dict)]
        return {key: result for unit in units for key, result in unit.items()}

    def add(self, results: Mapping[str, Any]) -> None:
        """Keep the results of a work unit: numbers, texts, arrays, lists and objects by key."""
        self.write(next(iter(results)), results)

    def read(self, name: str, mapped: bool = False) -> Any:
        """A unit, or None if it is absent or damaged; mapped arrays are read when used."""
        path = self.folder / name
        with suppress(*DAMAGES):
            return read_tree(path, mapped, checked=True) if is_own(path) else None
        return None

    def write(self, name: str, result: Any) -> None:
        """Keep a unit."""
        path = self.folder / name
        self._check()
        with writing(path):
            if os.path.lexists(path) and not is_tree(path):
                raise foreign(path)
            write_tree(path, result, synced=True)

    def forget(self, name: str) -> None:
        """Remove a unit that no run needs any more, if it is there."""
        if is_tree(self.folder / name):
            (self.folder / name).unlink()


@contextmanager
def finished_units(
    work: Path,
    identity: Mapping[str, Any],
    check: Callable[[], None] = lambda: None,
) -> Iterator[FinishedUnits]:
    """The finished units of a run, whose `identity` is all that they depend on, as JSON."""
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    units = FinishedUnits(work / digest[:32], check)
    try:
        yield units
    except (RefimplError, ArithmeticError) as error:  # the latter: a number left its range
        if not isinstance(error, ResumableError):  # it would come again
            with suppress(OSError):
                discard(units.folder)
        raise
    finally:
        with suppress(OSError):  # it is not empty
            units.folder.rmdir()


def discard(folder: Path) -> None:
    """Remove the units in a folder, and the folder if nothing else is in it."""
    for path in folder.iterdir():
        if is_tree(path) or (UNFINISHED.fullmatch(path.name) and is_own(path)):
            path.unlink()
    with suppress(OSError):
        folder.rmdir()


def runs(work: Path) -> list[Path]:
    """The folders of all runs in the hidden folder."""
    if not is_folder(work):
        return []
    return [x for x in sorted(work.iterdir()) if RUN.fullmatch(x.name) and is_folder(x)]


def are_left(output: Path) -> bool:
    """Whether a stopped run left finished units beside its output."""
    return any(is_tree(path) for folder in runs(work_path(output)) for path in folder.iterdir())
