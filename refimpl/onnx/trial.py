"""The experiment on one short sample, by NumPy and by a graph, from the same noise.

Every block is pushed once. The push is as long as the state (eta 1): a drift is a difference of two
states, and the smaller it is, the fewer of its digits are left to compare.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.method.perturbation import Perturbation, noise
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.candidate import Against, recorded_session
from refimpl.onnx.graph_file import MEASURED
from refimpl.onnx.recording.experiment_graph import AT, ETA, NOISE, experiment_graph
from refimpl.onnx.recording.model_graph import TOKENS
from refimpl.onnx.recording.weight_entries import Enter
from refimpl.onnx.session import Device, Session
from refimpl.running.memory import DEFAULT_MEMORY
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import experiment

PUSH = 1.0  # relative magnitude
LONGEST = 64  # tokens: all states are in memory at once


@dataclass(frozen=True)
class Trial:
    """A graph of the experiment, opened.

    Args:
        session: What runs it.
        plan: How states are pushed and measured.
        ids: Dtype of its token ids.
    """

    session: Session
    plan: Perturbation
    ids: npt.DTypeLike


def recorded_trial(
    model: Model, dtype: npt.DTypeLike, against: Against, device: Device, threads: int | None
) -> Trial:
    """Record the experiment of a model as a graph, and open it; nothing is written.

    Args:
        model: From `read_model`.
        dtype: Dtype of the computation, float32 or float64.
        against: What runs it, "onnxruntime" or "onnx-reference".
        device: Where.
        threads: On the CPU; one per core if None.

    Returns:
        The graph, opened.

    Raises:
        RefimplError: As `candidate.recorded_session`.
    """
    plan = Perturbation()

    def record(enter: Enter) -> onnx.ModelProto:
        return experiment_graph(model, plan, dtype, enter).model()

    session = recorded_session(model, dtype, record, against, device, threads)
    return Trial(session, plan, np.int64)


def trial_tokens(ids: Array) -> Array:
    """The sample that the experiment is compared on.

    Args:
        ids: Samples, [n, S].

    Returns:
        The start of the first one, [1, at most 64].

    Example:
        >>> trial_tokens(np.zeros((3, 100), np.int64)).shape
        (1, 64)
    """
    return ids[:1, :LONGEST]


def trial_points(
    model: Model, trial: Trial, ids: Array, dtype: npt.DTypeLike
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Run the experiment twice: by the graph, and by NumPy.

    Args:
        model: From `read_model`.
        trial: The graph.
        ids: From `trial_tokens`.
        dtype: Dtype of the computation.

    Returns:
        What the graph found and what NumPy did: drift and alignment, a row per pushed block, and
        the absorption coefficient of each; 0 stands where nothing is to be known.

    Raises:
        RefimplError: The runtime cannot run the graph.
    """
    plan = replace(trial.plan, eta=(PUSH,))
    with np.errstate(all="ignore"):  # what goes wrong in there shows in the values
        found = trial.session.run(_inputs(model, trial, ids, plan), MEASURED)
    with Settings(dtype, threads=1, memory=DEFAULT_MEMORY).open({}) as resources:
        ours = experiment(model, ids, plan, resources)
    first = (0, 0, 0)  # of one eta, one sequence, one draw
    right = (ours.drift[first], ours.alignment[first], ours.ratios[first])
    known = {name: _column(value) for name, value in zip(MEASURED, right, strict=True)}
    actual = {name: _column(found[name]) for name in MEASURED}
    holes = {name: np.isnan(value) for name, value in known.items()}
    return (
        {name: _filled(actual[name], holes[name]).astype(dtype) for name in MEASURED},
        {name: _filled(known[name], holes[name]).astype(dtype) for name in MEASURED},
    )


def _inputs(model: Model, trial: Trial, ids: Array, plan: Perturbation) -> dict[str, Array]:
    """One state per block."""
    blocks, shape = range(model.config.num_blocks), (ids.shape[1], model.config.hidden_size)
    return {
        TOKENS: ids.astype(trial.ids),
        AT: np.array(blocks, np.int64),
        ETA: np.full(len(blocks), PUSH),
        NOISE: np.stack([noise(plan.seed, 0, block, 0, shape) for block in blocks]),
    }


def _column(value: Array) -> Array:
    """A number per block as a row each, so that each is compared by itself."""
    return value[:, None] if value.ndim == 1 else value


def _filled(value: Array, holes: Array) -> Array:
    """Zeros where nothing is known, by both; what only one of them knows stays."""
    if value.shape != holes.shape:
        return value
    return np.where(holes & np.isnan(value), 0.0, value)
