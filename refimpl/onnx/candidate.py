"""What is held against NumPy: a graph recorded here, a graph from a file, or transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.graph_file import GraphFile, whole
from refimpl.onnx.peer import peer_points, peer_session
from refimpl.onnx.recording.external_data import distinct, pieces
from refimpl.onnx.recording.model_graph import TOKENS, model_graph
from refimpl.onnx.recording.weight_entries import Enter, copied, embedded
from refimpl.onnx.session import Device, Session, open_session, reference_session

Against = Literal["onnxruntime", "onnx-reference", "torch"]
Run = Callable[[Array], Mapping[str, Array]]


@dataclass(frozen=True)
class Candidate:
    """Another computation of the same forward pass.

    Args:
        run: From token ids [B, S] to arrays by trace point.
        what: What runs it, and where.
        points: Trace points that it promises; None for all.
    """

    run: Run
    what: str
    points: tuple[str, ...] | None = None


def file_candidate(graph: GraphFile, session: Session) -> Candidate:
    """Have a graph from a file compute the forward pass.

    Args:
        graph: From `read_graph`.
        session: From `file_session`.

    Returns:
        What it computes.
    """
    names = [name for name in graph.outputs if graph.points is None or name in graph.points]
    run = _runner(session, graph.tokens, graph.ids, names)
    return Candidate(run, what_runs(session), graph.points)


def file_session(
    graph: GraphFile, against: Against, device: Device, threads: int | None
) -> Session:
    """Open a graph from a file.

    Args:
        graph: From `read_graph`.
        against: What runs it, "onnxruntime" or "onnx-reference".
        device: Where.
        threads: On the CPU; one per core if None.

    Returns:
        The session.

    Raises:
        RefimplError: A runtime that cannot load the graph or its weights.
    """
    if against == "onnxruntime":
        return open_session(graph.path, device, threads=threads)
    return reference_session(whole(graph))


def recorded_candidate(
    model: Model, dtype: npt.DTypeLike, against: Against, device: Device, threads: int | None
) -> Candidate:
    """Record every trace point of a model as a graph, and open it; nothing is written.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation, float32 or float64.
        against: What runs it, "onnxruntime" or "onnx-reference".
        device: Where.
        threads: On the CPU; one per core if None.

    Returns:
        What it computes.

    Raises:
        RefimplError: NaN or Inf among the weights; a runtime that cannot load the graph.
    """

    def record(enter: Enter) -> onnx.ModelProto:
        return model_graph(model, dtype, enter, "trace")

    session = recorded_session(model, dtype, record, against, device, threads)
    return Candidate(_runner(session, TOKENS, np.dtype(np.int64), None), what_runs(session))


def recorded_session(
    model: Model,
    dtype: npt.DTypeLike,
    record: Callable[[Enter], onnx.ModelProto],
    against: Against,
    device: Device,
    threads: int | None,
) -> Session:
    """Record a graph, and open it; nothing is written.

    onnxruntime is given the weights where they are, mapped from the file where the dtype is the
    same; onnx's evaluator a copy of them.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation, float32 or float64.
        record: Given how weights enter, returns the graph.
        against: What runs it, "onnxruntime" or "onnx-reference".
        device: Where.
        threads: On the CPU; one per core if None.

    Returns:
        The session.

    Raises:
        RefimplError: NaN or Inf among the weights; a runtime that cannot load the graph.
    """
    if against != "onnxruntime":
        return reference_session(record(embedded(model, dtype)))
    found = pieces(model, dtype)
    proto = record(copied(found, "weights"))
    wanted = {tensor.name for tensor in proto.graph.initializer}
    weights = {
        piece.name: piece.read()[0].reshape(piece.shape)
        for piece in distinct(found)
        if piece.name in wanted
    }
    return open_session(proto.SerializeToString(), device, threads=threads, weights=weights)


def peer_candidate(model: Model, dtype: npt.DTypeLike, device: Device) -> Candidate:
    """Open a model with transformers.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation, float32 or float64.
        device: Where.

    Returns:
        What it computes.

    Raises:
        RefimplError: As `peer.peer_session`.
    """
    run, what = peer_session(model, dtype, device)
    return Candidate(run, what, peer_points(model.config.num_blocks))


def _runner(
    session: Session, tokens: str, ids: np.dtype[np.generic], names: list[str] | None
) -> Run:
    """Run a session on token ids alone."""

    def run(token_ids: Array) -> Mapping[str, Array]:
        with np.errstate(all="ignore"):  # what goes wrong in there shows in the values
            return session.run({tokens: token_ids.astype(ids)}, names)

    return run


def what_runs(session: Session) -> str:
    """What runs a graph, and where, in words.

    Args:
        session: It.

    Returns:
        Such as "onnxruntime 1.22.0, cpu".
    """
    versions = (f"{name} {version}" for name, version in session.versions.items())
    return ", ".join([*versions, session.device])
