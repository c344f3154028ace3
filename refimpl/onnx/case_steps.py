"""A graph that computes a case: its outputs, under the names of the case's steps."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refimpl.errors import RefimplError
from refimpl.method.absorption import nan_mean
from refimpl.method.perturbation import Perturbation
from refimpl.model.config import Config
from refimpl.model.ops import Array
from refimpl.onnx.candidate import Backend, file_candidate
from refimpl.onnx.graph_file import GraphFile
from refimpl.onnx.recording.experiment_graph import experiment_inputs
from refimpl.onnx.recording.model_graph import PERTURBATION_OPTIONS, trace_points
from refimpl.onnx.session import Device, Session


def graph_steps(
    path: Path,
    config: Config,
    inputs: Mapping[str, Array],
    plan: Perturbation,
    device: Device = "auto",
    time_limit: float | None = None,
) -> tuple[dict[str, Array], str]:
    """Run a graph on a case's `token_ids` [N, S] and `noise` [L, N, S, D]: its steps and dtype."""
    backend = Backend("onnxruntime", device, time_limit=time_limit)
    foreign = backend.open_file(path, trace_points(config))
    graph, session = foreign.graph, foreign.session
    if graph.experiment is not None:
        return _measured(graph, graph.experiment, session, inputs, plan), graph.dtype
    return dict(file_candidate(graph, session).run(inputs["token_ids"])), graph.dtype


def _measured(
    graph: GraphFile,
    experiment: Perturbation,
    session: Session,
    inputs: Mapping[str, Array],
    plan: Perturbation,
) -> dict[str, Array]:
    """Drift, alignment and coefficients of the experiment, means over the sequences."""
    if "noise" not in inputs:
        raise RefimplError(
            f"{graph.path} perturbs states, and the case holds no noise",
            "a case of the experiment",
            "make a case with --only 'perturbed.*', or of every step",
        )
    different = [n for n in PERTURBATION_OPTIONS if getattr(experiment, n) != getattr(plan, n)]
    if different:
        raise RefimplError(
            f"{graph.path}: {', '.join(f'{n} {getattr(experiment, n)}' for n in different)}",
            f"{', '.join(f'{n} {getattr(plan, n)}' for n in different)}, as the case says",
            "write the graph again with the case's options",
        )
    names, noise = ("drift", "alignment", "ratio"), inputs["noise"]
    blocks = np.arange(len(noise))
    etas = np.full(len(blocks), plan.eta[0])
    runs = [
        session.run(
            experiment_inputs(ids[None].astype(graph.ids), blocks, etas, noise[:, i]), names
        )
        for i, ids in enumerate(inputs["token_ids"])
    ]
    drift, alignment, ratio = (
        nan_mean(np.stack([run[name] for run in runs]), axis=0) for name in names
    )
    steps = {}
    for i in blocks:
        steps[f"perturbed.{i}.drift"] = drift[i, i:]
        steps[f"perturbed.{i}.alignment"] = alignment[i, i:]
    return {**steps, "absorption_coefficient": ratio}
