"""What is compared with NumPy's forward: a recorded graph, a graph from a file, or transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from refimpl.method.perturbation import Perturbation
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.graph_file import GraphFile, whole
from refimpl.onnx.peer import peer_points, peer_session
from refimpl.onnx.recording.graph import Graph
from refimpl.onnx.recording.graph_weights import distinct, graph_weights
from refimpl.onnx.recording.model_graph import TOKENS, model_graph
from refimpl.onnx.recording.weight_entries import Enter, copied, embedded
from refimpl.onnx.session import Device, Session, open_session, reference_session

Against = Literal["onnxruntime", "onnx-reference", "torch"]


@dataclass(frozen=True)
class Candidate:
    """Another computation of the forward pass, or of the experiment.

    Args:
        run: From token ids [B, S] to arrays by trace point; of the experiment, from ids [1, S] to
            drift, alignment and coefficient.
        runtime: What runs it, such as "onnxruntime 1.22.0, cpu".
        points: Trace points that it promises; None for all.
        plan: How the experiment perturbs and measures; None for a forward pass.
    """

    run: Callable[[Array], Mapping[str, Array]]
    runtime: str
    points: tuple[str, ...] | None = None
    plan: Perturbation | None = None


@dataclass(frozen=True)
class Backend:
    """What opens graphs: a runtime, its device, and threads on the CPU (one per core if None)."""

    against: Against
    device: Device = "auto"
    threads: int | None = None

    def open_file(self, graph: GraphFile) -> Session:
        """Open a graph from a file."""
        if self.against == "onnxruntime":
            return open_session(graph.path, self.device, threads=self.threads)
        return reference_session(whole(graph))

    def open_recorded(
        self, model: Model, dtype: npt.DTypeLike, record: Callable[[Enter], Graph]
    ) -> Session:
        """Record a graph and open it, without writing it.

        onnxruntime reads the weights in place, mapped from the file if they have the dtype of the
        computation; onnx's evaluator gets a copy.
        """
        if self.against != "onnxruntime":
            return reference_session(record(embedded(model, dtype)).model())
        weights = graph_weights(model, dtype)
        graph = record(copied(weights, "memory"))
        names, arrays = {tensor.name for tensor in graph.initializers}, {}
        for weight in distinct(weights):
            if weight.name in names:
                arrays[weight.name] = weight.read()[0].reshape(weight.shape)
                weight.weight.stored.file.release()
        proto = graph.model().SerializeToString()
        return open_session(proto, self.device, threads=self.threads, weights=arrays)


def recorded_candidate(model: Model, dtype: npt.DTypeLike, backend: Backend) -> Candidate:
    """A model recorded with every trace point."""
    session = backend.open_recorded(
        model, dtype, lambda enter: model_graph(model, dtype, enter, "trace")
    )
    return Candidate(lambda ids: session.run({TOKENS: ids.astype(np.int64)}), session.description)


def file_candidate(graph: GraphFile, session: Session) -> Candidate:
    """A graph from a file that hands out the logits, and trace points or not."""
    names = [name for name in graph.outputs if graph.points is None or name in graph.points]
    return Candidate(
        lambda ids: session.run({graph.tokens: ids.astype(graph.ids)}, names),
        session.description,
        graph.points,
    )


def peer_candidate(model: Model, dtype: npt.DTypeLike, device: Device) -> Candidate:
    """A model opened with transformers."""
    run, description = peer_session(model, dtype, device)
    return Candidate(run, description, peer_points(model.config.num_blocks))
