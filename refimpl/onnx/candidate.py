"""Other computations of a case's steps: a recorded graph, or a graph from a file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from refimpl.arguments import Device
from refimpl.errors import RefimplError
from refimpl.method.absorption import nan_mean
from refimpl.method.perturbation import Noise
from refimpl.model.ops import Array
from refimpl.onnx.recording import model_graph as graphs
from refimpl.onnx.recording.graph import distinct
from refimpl.onnx.session import Session, open_session
from refimpl.oracle.case import Case

RunGraph = Callable[[Mapping[str, Array]], Mapping[str, Array]]  # inputs to outputs, by our names


@dataclass(frozen=True)
class Candidate:
    """A graph that gives trace points, or drifts and so on if it has a plan to perturb by.

    All its sequences have one length, unless that is None.
    """

    outputs: RunGraph
    runtime: str
    dtype: str
    points: tuple[str, ...]
    plan: Noise | None = None
    length: int | None = None

    @property
    def steps(self) -> tuple[str, ...]:
        """The steps of a case that it computes, as patterns."""
        return self.points if self.plan is None else ("perturbed.*", "absorption_coefficient")

    def run(self, case: Case) -> Mapping[str, Array]:
        """Compute the steps of a case."""
        ids = case.inputs[graphs.TOKENS]
        if self.length not in (None, ids.shape[1]):
            raise RefimplError(
                f"a graph for sequences of {self.length} tokens, and these have {ids.shape[1]}",
                f"sequences of {self.length} tokens, or a graph for any length",
                f"use --seq-len {self.length}, or export the graph without --seq-len",
            )
        if self.plan is not None:
            return _experiment(self.outputs, self.plan, case)
        return self.outputs({graphs.TOKENS: ids})


def recorded_candidate(
    recording: graphs.Recording, plan: Noise | None, device: Device, threads: int | None
) -> Candidate:
    """The forward pass with every trace point, or with a plan the experiment, recorded here."""
    graphs.record(recording, "trace", plan)
    session, dtype = recorded_session(recording, device, threads), recording.dtype.name
    points = graphs.trace_points(recording.model.config) if plan is None else ()
    run = partial(session.run, outputs=points or graphs.MEASURED)
    return Candidate(run, session.description, dtype, points, plan, recording.length)


def recorded_session(recording: graphs.Recording, device: Device, threads: int | None) -> Session:
    """Open a recorded graph without writing it; its weights are used in place, in memory."""
    names = {tensor.name for tensor in recording.graph.initializers}
    arrays = {x.name: x.read() for x in distinct(recording.carried) if x.name in names}
    proto = recording.graph.model().SerializeToString()
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
