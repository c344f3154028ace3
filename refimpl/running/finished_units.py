"""The results of a run so far: an `.npz` for each work unit, in a folder named by its inputs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.running.file_system import (
    DONE,
    comes_again,
    is_folder,
    is_own,
    open_file,
    remove,
    replaced,
    work_path,
    writing,
)

RUN = 32 * "[0-9a-f]"  # names of folders that we make
TREE = "tree"  # the array that holds the JSON of a unit, in which ARRAY is the name of another one
ARRAY = "array"


class FinishedUnits:
    """The finished units of one run by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(exist_ok=True)

    @property
    def earlier(self) -> dict[str, Any]:
        """The results by key of all units that are whole."""
        found: dict[str, Any] = {}
        for path in sorted(self.folder.glob("*.npz")):
            with suppress(Exception):  # whatever a damaged file leads to: the unit is made again
                found |= read_unit(path)
        return found

    def write(self, name: str, results: Mapping[str, Any]) -> None:
        """Keep a unit: lists and objects of numbers, texts and arrays, by key."""
        path, arrays = self.folder / f"{name}.npz", dict[str, Any]()

        def reference(x: Any) -> Any:
            if isinstance(x, np.generic):
                return x.item()
            arrays[str(len(arrays))] = x
            return {ARRAY: str(len(arrays) - 1)}

        text = json.dumps(dict(results), default=reference).encode()
        arrays[TREE] = np.frombuffer(text, np.uint8)
        with writing(path):
            archive = BytesIO()  # zipfile writes, and writes again, in many small pieces
            np.savez(archive, **arrays)
            with replaced(path) as beside:
                beside.write_bytes(archive.getbuffer())


def read_unit(path: Path) -> dict[str, Any]:
    """The results in a unit; an error of some kind if it is damaged."""
    with open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
        found: dict[str, Any] = json.loads(
            arrays[TREE].tobytes(),
            object_hook=lambda row: arrays[row[ARRAY]] if row.keys() == {ARRAY} else row,
        )
        return found


@contextmanager
def finished_units(work: Path, identity: Mapping[str, Any]) -> Iterator[FinishedUnits]:
    """The finished units of a run, whose `identity` is all that they depend on, as JSON."""
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    units = FinishedUnits(work / digest[:32])
    try:
        yield units
    except Exception as error:
        if comes_again(error):
            with suppress(OSError):
                remove(units.folder)
        raise
    finally:
        with suppress(OSError):  # it is not empty
            units.folder.rmdir()


def runs(work: Path) -> list[Path]:
    """The folders of all runs in the hidden folder."""
    return [x for x in sorted(work.glob(RUN)) if is_folder(x)] if is_folder(work) else []


def are_left(output: Path) -> bool:
    """Whether a stopped run left finished units, or a copy with finished blocks."""
    work = work_path(output)
    units = [path for folder in runs(work) for path in folder.glob("*.npz")]
    return bool(units) or (is_folder(work) and is_own(work / DONE))
