"""What runs leave on the disk, to compare: documents, folders of models, finished units."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import strategies as st

from refimpl.allocation.scores_json import RENAMED
from refimpl.pruning.pruned_files import PrunedFiles
from refimpl.running.file_system import DONE, NEW, RUN_FOLDER, FinishedUnits, work_path


def numbers(path: Path) -> dict[str, Any]:
    """A document without what differs from run to run."""
    document: dict[str, Any] = json.loads(path.read_text())
    for part in (document, document.get("scores", {})):
        for name in ("run", "seconds"):
            part.pop(name, None)
    return document


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def content(folder: Path) -> dict[str, bytes]:
    """Files of a model's folder, documents of ours without what differs from run to run."""
    ours = (
        path
        for path in folder.iterdir()
        if path.name in ("pruning.json", "scores.json")
    )
    return files(folder) | {path.name: repr(numbers(path)).encode() for path in ours}


def units(output: Path) -> list[str]:
    """What is finished beside an output: keys of results, and pruned blocks."""
    found, done = list[str](), work_path(output) / DONE
    if done.exists() and done.with_name(NEW).exists():  # not yet renamed to the output
        found += [
            f"block {i}" for i in range(len(json.loads(done.read_text())["blocks"]))
        ]
    for run in sorted(work_path(output).glob(RUN_FOLDER)):
        found += FinishedUnits(run).earlier
    return found


@contextmanager
def before_unit(number: int, action: Callable[[], object]) -> Iterator[None]:
    """Do something, such as to interrupt the run, before it keeps its unit of this number."""
    left = number

    def counting(write: Any) -> Any:
        def writing(*arguments: Any) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                action()
            write(*arguments)

        return writing

    with (
        patch.object(FinishedUnits, "write", counting(FinishedUnits.write)),
        patch.object(PrunedFiles, "finish", counting(PrunedFiles.finish)),
    ):
        yield


def interrupt() -> None:
    raise KeyboardInterrupt


def facts(document: dict[str, Any]) -> dict[str, Any]:
    """What a `scores.json` says, without nesting, by the names that `pruning.json` has."""
    scores = document["scores"]
    asked = {
        RENAMED.get(x, x): value
        for x, value in (scores["plan"] | scores["made_for"]).items()
    }
    first = {"eta": scores["sweep"][0]["eta"], "dtype": scores["run"]["dtype"]}
    return {**scores, **asked, **document["allocations"][0], **first}


def coefficients(path: Path) -> list[Any]:
    """The absorption coefficients in a `scores.json` at the first eta."""
    found: list[Any] = json.loads(path.read_text())["scores"]["sweep"][0]["coefficient"]
    return found


JUNK = (
    *(None, True, 0, -1, 3, 10**30, 0.5, -0.5, 1e300, "", "x", "0.5", "2:4"),
    *([], {}, [1], [None], [[]], [0.5] * 4, {"a": 1}),
)


def changed(text: str, data: st.DataObject, more: Sequence[Any] = ()) -> Any:
    """A document in which a value is another one (junk, or one of more), or gone, or twice."""
    content = holder = json.loads(text)
    while True:
        key: Any = data.draw(
            st.sampled_from(
                [*holder] if isinstance(holder, dict) else range(len(holder))
            )
        )
        if not (isinstance(holder[key], dict | list) and holder[key]) or data.draw(
            st.booleans()
        ):
            break
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[key] = data.draw(st.sampled_from([*JUNK, *more]))
    elif data.draw(st.booleans()):
        del holder[key]
    else:
        holder.append(holder[key]) if isinstance(holder, list) else holder.update(x=1)
    return content
