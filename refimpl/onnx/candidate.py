"""Other computations of a case's steps: a recorded graph, or a graph from a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.arguments import Device
from refimpl.errors import RefimplError
from refimpl.method.absorption import nan_mean
from refimpl.method.perturbation import Noise
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.recording import model_graph as graphs
from refimpl.onnx.recording.graph import Graph, distinct
from refimpl.onnx.session import Session, open_session
from refimpl.oracle.case import Case

EXPERIMENT = ("perturbed.*", "absorption_coefficient")  # steps, as patterns
RunGraph = Callable[[Mapping[str, Array]], Mapping[str, Array]]
"""From a graph's inputs by our names to its outputs: trace points, or those of an experiment."""


@dataclass(frozen=True)
class Candidate:
    """Another computation of the steps of a case that match its patterns; a plan perturbs."""

    run: Callable[[Case], Mapping[str, Array]]
    runtime: str
    dtype: str
    steps: tuple[str, ...]
    plan: Noise | None = None


def graph_candidate(
    run: RunGraph, runtime: str, dtype: str, points: tuple[str, ...], plan: Noise | None
) -> Candidate:
    """A graph that gives trace points, or drifts and so on if it has a plan to perturb by."""
    if plan is not None:
        return Candidate(partial(_experiment, run, plan), runtime, dtype, EXPERIMENT, plan)
    name = graphs.TOKENS
    return Candidate(lambda case: run({name: case.inputs[name]}), runtime, dtype, points)


def recorded_candidates(
    model: Model, dtype: str, device: Device, threads: int | None
) -> list[Candidate]:
    """The forward pass with every trace point, and the experiment, recorded here."""
    records: dict[Noise | None, Callable[[graphs.Recording], Graph]] = {
        None: partial(graphs.model_graph, outputs="trace"),
        Noise(): partial(graphs.experiment_graph, plan=Noise()),
    }
    candidates = []
    for plan, record in records.items():
        session = recorded_session(model, dtype, record, device, threads)
        points = graphs.trace_points(model.config) if plan is None else ()
        run = partial(session.run, outputs=points or graphs.MEASURED)
        candidates.append(graph_candidate(run, session.description, dtype, points, plan))
    return candidates


def recorded_session(
    model: Model,
    dtype: npt.DTypeLike,
    record: Callable[[graphs.Recording], Graph],
    device: Device,
    threads: int | None,
) -> Session:
    """Record a graph and open it, without writing it; its weights are used in place, in memory."""
    recording = graphs.Recording(model, dtype, "memory")
    graph = record(recording)
    names = {tensor.name for tensor in graph.initializers}
    arrays = {x.name: x.read() for x in distinct(recording.carried) if x.name in names}
    proto = graph.model().SerializeToString()
    return open_session(proto, device, threads=threads, weights=arrays)


def _experiment(run: RunGraph, plan: Noise, case: Case) -> dict[str, Array]:
    """Drift, alignment and coefficients: a state per block, and means over the sequences."""
    if "noise" not in case.inputs:
        raise RefimplError(
            "the graph perturbs states, and the case holds no noise",
            "a case of the experiment",
            "make a case with --only 'perturbed.*', or of every step",
        )
    asked, noise = case.recipe.perturbation, case.inputs["noise"]
    different = [n for n in graphs.PERTURBATION_OPTIONS if getattr(plan, n) != getattr(asked, n)]
    if different:
        raise RefimplError(
            f"the graph has {', '.join(f'{n} {getattr(plan, n)}' for n in different)}",
            f"{', '.join(f'{n} {getattr(asked, n)}' for n in different)}, as the case says",
            "write the graph again with the case's options",
        )
    blocks = np.arange(len(noise))
    etas = np.full(len(blocks), case.recipe.eta)
    runs = [
        run(graphs.experiment_inputs(ids[None], blocks, etas, noise[:, i]))
        for i, ids in enumerate(case.inputs[graphs.TOKENS])
    ]
    table = (len(blocks), len(blocks))
    for name, shape in zip(graphs.MEASURED, (table, table, table[:1]), strict=True):
        if found := [x[name].shape for x in runs if x[name].shape != shape]:
            raise RefimplError(
                f"the graph's output {name} has shape {list(found[0])}",
                f"{list(shape)}: a state per block",
                "write the graph with refimpl export",
            )
    drift, alignment, coefficient = (
        nan_mean(np.stack([x[name] for x in runs]), axis=0) for name in graphs.MEASURED
    )
    steps = {}
    for i in blocks:
        steps[f"perturbed.{i}.drift"] = drift[i, i:]
        steps[f"perturbed.{i}.alignment"] = alignment[i, i:]
    return {**steps, "absorption_coefficient": coefficient}
