"""A graph from a file, which may not be ours: read, opened, run and counted in a child process."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.isolation.child_process import ChildProcess
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.graph_file import (
    GraphFile,
    locations,
    parsed_graph,
    read_graph,
    require_graph,
    whole,
)
from refimpl.onnx.session import Device, Session, open_session, reference_session
from refimpl.onnx.zero_weights import Zeros, count_zeros
from refimpl.running.memory import free_memory
from refimpl.running.work_units import ModelFiles

TIME_LIMIT = 600.0  # seconds
REFUSED = (
    "a graph that ends in time, and needs no more memory than is free",
    "write the graph with refimpl export, or use a longer --time-limit",
)


@dataclass(frozen=True)
class ForeignGraph:
    """An open graph in a process of its own: what it says, its session here, and its zeros."""

    graph: GraphFile
    session: Session
    child: ChildProcess

    def zeros(self, model: Model) -> Zeros:
        """The zeros in the graph's weights and in the model's."""
        counted: Zeros = self.child.call("zeros", ModelFiles.of(model))
        return counted


def files_beside(path: Path) -> list[Path]:
    """The files of weights that a graph refers to; none for what is not a graph."""
    with suppress(RefimplError):  # the command reports it
        require_graph(path)
        child = ChildProcess(
            "refimpl.onnx.foreign_graph:Locations",
            (path,),
            name=f"--graph {path}",
            seconds=TIME_LIMIT,
            memory=free_memory(),
            refused=REFUSED,
        )
        return [path.parent / name for name in child.call("all")]
    return []


def open_foreign(
    path: Path,
    trace: tuple[str, ...],
    against: str,
    device: Device,
    threads: int | None,
    time_limit: float | None,
) -> ForeignGraph:
    """Open a graph's file in a child process; no step of it may take longer than the limit.

    `trace` has the names of all trace points.
    """
    require_graph(path)
    seconds = TIME_LIMIT if time_limit is None else time_limit
    if not 0 < seconds <= 1e6:
        raise RefimplError(
            f"--time-limit {seconds:g}", "seconds, from above 0 to 1,000,000", "omit --time-limit"
        )
    child = ChildProcess(
        "refimpl.onnx.foreign_graph:Opened",
        (path, trace, against, device, threads),
        name=f"--graph {path}",
        seconds=seconds,
        memory=free_memory() if device == "cpu" else None,
        refused=REFUSED,
    )
    graph, description, versions = child.call("facts")

    def run(inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        arrays: dict[str, Array] = child.call("run", dict(inputs), outputs and list(outputs))
        return arrays

    return ForeignGraph(graph, Session(run, description, versions), child)


class Locations:
    """The child's side of `files_beside`."""

    def __init__(self, path: Path) -> None:
        self._names = locations(parsed_graph(path))

    def all(self) -> tuple[str, ...]:
        """Their names."""
        return self._names


class Opened:
    """The child's side."""

    def __init__(
        self,
        path: Path,
        trace: tuple[str, ...],
        against: str,
        device: Device,
        threads: int | None,
    ) -> None:
        self.path, self.graph = path, read_graph(path, trace)
        if against == "onnxruntime":
            self.session = open_session(path, device, threads=threads)
        else:
            self.session = reference_session(whole(path))

    def facts(self) -> tuple[GraphFile, str, Mapping[str, str]]:
        """What the graph says, device and versions."""
        return self.graph, self.session.device, self.session.versions

    def run(self, inputs: dict[str, Array], outputs: list[str] | None) -> dict[str, Array]:
        """Outputs by name; what is no array of numbers is refused."""
        arrays: Mapping[str, Any] = self.session.run(inputs, outputs)
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray | np.generic) or array.dtype.kind not in "fiu":
                raise RefimplError(
                    f"--graph {self.path}: output {name} is no array of numbers",
                    "arrays of float32 or float64",
                    "write the graph with refimpl export",
                )
        return {name: np.asarray(array) for name, array in arrays.items()}

    def zeros(self, files: ModelFiles) -> Zeros:
        """The zeros in the graph's weights and in the model's."""
        return count_zeros(files.open(), parsed_graph(self.path), self.path.parent)
