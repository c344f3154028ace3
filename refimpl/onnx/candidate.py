"""What is compared with NumPy: a recorded graph, a graph from a file, or transformers.

Of the experiment every block is perturbed once, by noise as long as the state (eta 1): a drift is a
difference of two states, and the smaller it is, the fewer of its digits remain to compare.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from refimpl.method.perturbation import Perturbation, noise
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.foreign_graph import ForeignGraph, open_foreign
from refimpl.onnx.graph_file import MEASURED, GraphFile
from refimpl.onnx.peer import peer_points, peer_session
from refimpl.onnx.recording.experiment_graph import experiment_graph, experiment_inputs
from refimpl.onnx.recording.graph import Graph
from refimpl.onnx.recording.graph_weights import distinct, graph_weights
from refimpl.onnx.recording.model_graph import TOKENS, model_graph
from refimpl.onnx.recording.weight_entries import Enter, copied, embedded
from refimpl.onnx.session import Device, Session, open_session, reference_session
from refimpl.running.memory import DEFAULT_MEMORY
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import experiment

Against = Literal["onnxruntime", "onnx-reference", "torch"]
LONGEST = 64  # tokens of the experiment: all states are in memory at once


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
    """What opens graphs.

    Args:
        against: The runtime.
        threads: On the CPU; one per core if None.
        time_limit: Seconds that a graph from a file may take to open or run.
    """

    against: Against
    device: Device = "auto"
    threads: int | None = None
    time_limit: float | None = None

    def open_file(self, path: Path, trace: tuple[str, ...]) -> ForeignGraph:
        """Open a graph from a file, in a process of its own; `trace` names all trace points."""
        return open_foreign(path, trace, self.against, self.device, self.threads, self.time_limit)

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


def open_candidates(
    model: Model,
    foreign: ForeignGraph | None,
    dtype: str,
    backend: Backend,
) -> list[Candidate]:
    """Open what is compared with NumPy: the forward pass, the experiment, or both.

    Of a graph's file, which is open already, one of them.
    """
    if backend.against == "torch":
        run, description = peer_session(model, dtype, backend.device)
        return [Candidate(run, description, peer_points(model.config.num_blocks))]
    if foreign is None:
        plan = Perturbation()
        trace = backend.open_recorded(
            model, dtype, lambda enter: model_graph(model, dtype, enter, "trace")
        )
        experiment = backend.open_recorded(
            model, dtype, lambda enter: experiment_graph(model, plan, dtype, enter)
        )
        return [
            Candidate(lambda ids: trace.run({TOKENS: ids.astype(np.int64)}), trace.description),
            experiment_candidate(model, experiment, plan),
        ]
    file, session = foreign.graph, foreign.session
    if file.experiment is None:
        return [file_candidate(file, session)]
    return [experiment_candidate(model, session, file.experiment, file.ids)]


def file_candidate(graph: GraphFile, session: Session) -> Candidate:
    """A graph from a file that hands out the logits, and trace points or not."""
    names = [name for name in graph.outputs if graph.points is None or name in graph.points]
    return Candidate(
        lambda ids: session.run({graph.tokens: ids.astype(graph.ids)}, names),
        session.description,
        graph.points,
    )


def experiment_candidate(
    model: Model, session: Session, plan: Perturbation, ids_dtype: npt.DTypeLike = np.int64
) -> Candidate:
    """The experiment by an open graph: a state per block."""
    plan = replace(plan, eta=(1.0,))
    blocks, width = range(model.config.num_blocks), model.config.hidden_size

    def run(ids: Array) -> Mapping[str, Array]:
        drawn = [noise(plan.seed, 0, block, 0, (ids.shape[1], width)) for block in blocks]
        etas = len(blocks) * plan.eta
        inputs = experiment_inputs(ids.astype(ids_dtype), blocks, etas, np.stack(drawn))
        return session.run(inputs, MEASURED)

    return Candidate(run, session.description, plan=plan)


def experiment_tokens(ids: Array) -> Array:
    """The start of the first of some samples [n, S], [1, at most 64]."""
    return ids[:1, :LONGEST]


def experiment_points(
    model: Model, candidate: Candidate, plan: Perturbation, ids: Array, dtype: npt.DTypeLike
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Drift, alignment (a row per block) and coefficient of the candidate, and NumPy's.

    A number that neither of them has is 0 in both.
    """
    results = candidate.run(ids)
    with Settings(dtype, threads=1, memory=DEFAULT_MEMORY).open() as resources:
        ours = experiment(model, ids, plan, resources)
    only = (0, 0, 0)  # one eta, one sequence, one draw
    arrays = (ours.drift[only], ours.alignment[only], ours.ratios[only])
    expected = dict(zip(MEASURED, arrays, strict=True))
    return (
        {name: _filled(results[name], x).astype(dtype) for name, x in expected.items()},
        {name: _filled(x, x).astype(dtype) for name, x in expected.items()},
    )


def _filled(array: Array, like: Array) -> Array:
    """Zeros for the NaN that are expected, any other stays; a number per block as a row each."""
    if array.shape == like.shape:
        array = np.where(np.isnan(like) & np.isnan(array), 0.0, array)
    return array[:, None] if array.ndim == 1 else array
