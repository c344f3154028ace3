"""A graph that computes a case: what it hands out, under the names of the case's steps."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refimpl.errors import RefimplError
from refimpl.method.absorption import nan_mean
from refimpl.method.perturbation import Perturbation
from refimpl.model.config import Config
from refimpl.model.ops import Array
from refimpl.onnx.candidate import file_candidate, file_session
from refimpl.onnx.graph_file import PUSH, GraphFile, read_graph
from refimpl.onnx.recording.experiment_graph import AT, ETA, NOISE
from refimpl.onnx.scope import trace_points
from refimpl.onnx.session import Device, Session


def graph_steps(
    path: Path,
    config: Config,
    inputs: Mapping[str, Array],
    plan: Perturbation,
    device: Device = "auto",
) -> tuple[dict[str, Array], str]:
    """Run a graph on the inputs of a case.

    Args:
        path: The graph: a model's, whose outputs are trace points, or the experiment's.
        config: Of the case's model.
        inputs: The case's `token_ids` [N, S] and `noise` [L, N, S, D].
        plan: How the case pushes and measures, with one eta.
        device: Where onnxruntime runs it.

    Returns:
        Arrays by the names of the steps, and the dtype that the graph computes in.

    Raises:
        RefimplError: No such graph; an experiment that pushes or measures in another way; a
            runtime that cannot load or run it.

    Source:
        ours; names of the steps as in `refimpl.oracle.steps.steps`.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from refimpl import read_model
        >>> from refimpl.onnx.export import export
        >>> model, plan = read_model("fixtures/llama"), Perturbation()
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "llama.onnx")
        ...     _ = export(model, path, outputs="trace")
        ...     inputs = {"token_ids": np.arange(12).reshape(2, 6)}
        ...     found, dtype = graph_steps(path, model.config, inputs, plan, "cpu")
        >>> dtype, found["blocks.0.q"].shape
        ('float32', (2, 4, 6, 8))
    """
    graph = read_graph(path, trace_points(config))
    session = file_session(graph, "onnxruntime", device, None)
    if graph.experiment is not None:
        return _measured(graph, session, inputs, plan), graph.dtype
    return dict(file_candidate(graph, session).run(inputs["token_ids"])), graph.dtype


def _measured(
    graph: GraphFile, session: Session, inputs: Mapping[str, Array], plan: Perturbation
) -> dict[str, Array]:
    """Drift, alignment and coefficients of the experiment, means over the sequences."""
    made = graph.experiment
    other = [name for name in PUSH if getattr(made, name) != getattr(plan, name)]
    if other:
        raise RefimplError(
            f"{graph.path}: {', '.join(f'{n} {getattr(made, n)}' for n in other)}",
            f"{', '.join(f'{name} {getattr(plan, name)}' for name in other)}, as the case says",
            "write the graph again with the case's options",
        )
    ids, noise = inputs["token_ids"], inputs["noise"]
    blocks = np.arange(len(noise))
    runs = [
        session.run(
            {
                graph.tokens: row[None].astype(graph.ids),
                AT: blocks,
                ETA: np.full(len(blocks), plan.eta[0]),
                NOISE: noise[:, i],
            },
            ["drift", "alignment", "ratio"],
        )
        for i, row in enumerate(ids)
    ]
    drift, alignment, ratio = (
        nan_mean(np.stack([run[name] for run in runs]), axis=0)
        for name in ("drift", "alignment", "ratio")
    )
    found = {}
    for i in blocks:
        found[f"perturbed.{i}.drift"] = drift[i, i:]
        found[f"perturbed.{i}.alignment"] = alignment[i, i:]
    return {**found, "absorption_coefficient": ratio}
