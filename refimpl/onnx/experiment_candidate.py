"""The experiment on one short sample, by NumPy and by a graph, from the same noise.

Every block is perturbed once, by noise as long as the state (eta 1): a drift is a difference of two
states, and the smaller it is, the fewer of its digits remain to compare.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from refimpl.method.perturbation import Perturbation, noise
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.onnx.candidate import Backend, Candidate
from refimpl.onnx.graph_file import MEASURED
from refimpl.onnx.recording.experiment_graph import experiment_graph, experiment_inputs
from refimpl.onnx.session import Session
from refimpl.running.memory import DEFAULT_MEMORY
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import experiment

LONGEST = 64  # tokens: all states are in memory at once


def recorded_experiment(model: Model, dtype: npt.DTypeLike, backend: Backend) -> Candidate:
    """The experiment of a model, recorded."""
    plan = Perturbation()
    session = backend.open_recorded(
        model, dtype, lambda enter: experiment_graph(model, plan, dtype, enter)
    )
    return experiment_candidate(model, session, plan)


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
    with Settings(dtype, threads=1, memory=DEFAULT_MEMORY).open({}) as resources:
        ours = experiment(model, ids, plan, resources)
    only = (0, 0, 0)  # one eta, one sequence, one draw
    arrays = (ours.drift[only], ours.alignment[only], ours.ratios[only])
    expected = {name: _rows(array) for name, array in zip(MEASURED, arrays, strict=True)}
    actual = {name: _rows(results[name]) for name in MEASURED}
    unknown = {name: np.isnan(array) for name, array in expected.items()}
    return (
        {name: _filled(actual[name], unknown[name]).astype(dtype) for name in MEASURED},
        {name: _filled(expected[name], unknown[name]).astype(dtype) for name in MEASURED},
    )


def _rows(array: Array) -> Array:
    """A number per block as a row each, so that each is compared by itself."""
    return array[:, None] if array.ndim == 1 else array


def _filled(array: Array, unknown: Array) -> Array:
    """Zeros for the NaN that are expected; any other NaN stays."""
    if array.shape != unknown.shape:
        return array
    return np.where(unknown & np.isnan(array), 0.0, array)
