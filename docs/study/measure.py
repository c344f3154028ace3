"""Scores behind the study's corrections, each measured once and kept in a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from grid import BASE_OPTIONS, ETAS, PRUNING, Cell, Perturbed

from refimpl import Model, Noise, Probes, Request, Scores, allocate, score
from refimpl.allocation.scores_json import document, read_scores
from refimpl.method.correction import centred_log, clipped_log
from refimpl.storage.files import write_json
from refimpl.tokens.model_tokens import model_tokens

SAMPLES, SEQ_LEN = 4, 256  # of the calibration text, for scores


@dataclass(frozen=True)
class Bench:
    """Where things are.

    Args:
        real: Folder of models and texts.
        scores: Folder that keeps scores.
    """

    real: Path
    scores: Path

    @property
    def calibration(self) -> Path:
        """The text that everything is calibrated on."""
        return self.real / "text" / "sotu-1901-1979.txt"


def request_of(cell: Cell) -> Request:
    """The base allocation of a cell, without a correction."""
    options = BASE_OPTIONS.get(cell.base, {})
    return Request(cell.base, options, cell.sparsity, correct=None)


def scores_of(bench: Bench, model: Model, cell: Cell, perturbed: Perturbed) -> tuple[Scores, int]:
    """Scores of one way of perturbing, measured where they are not on file.

    Args:
        bench: Where things are.
        model: The cell's model.
        cell: The cell; the pruning perturbation prunes at its base and sparsity.
        perturbed: How states are perturbed.

    Returns:
        The scores, and which of their etas is meant.
    """
    noise = (perturbed.noise_scale, perturbed.noise_shape)
    request = request_of(cell)
    if perturbed.kind == "pruning":
        plan = Probes(sink=perturbed.sink)
        request = Request(request.base, request.options, request.sparsity, "divergence", 0.05)
        name = f"{cell.model} pruning {cell.base} {cell.sparsity:g}"
    else:
        plan = Noise(eta=ETAS, noise_scale=noise[0], noise_shape=noise[1], sink=perturbed.sink)
        request = Request(sparsity=cell.sparsity)
        name = f"{cell.model} gaussian {perturbed.sink} {' '.join(noise)}"
    path = bench.scores / f"{name.replace(' ', '_')}.json"
    if not path.exists():
        tokens = model_tokens(model, bench.calibration, None, SAMPLES, SEQ_LEN)
        found = score(model, tokens, plan, request)
        allocations = tuple(allocate(found, request, which) for which in range(len(found.sweep)))
        write_json(path, document(found, allocations))
        print(f"measured {name} in {found.run.seconds:.0f} s", flush=True)
    return read_scores(path), 0 if perturbed.eta is None else ETAS.index(perturbed.eta)


def logarithms(bench: Bench, model: Model, cell: Cell) -> npt.NDArray[np.float64]:
    """What the cell's correction is made of, u, [L], before what controls do to it."""
    blocks, correction = model.config.num_blocks, cell.correction
    if correction.perturbed is None:  # the line: first blocks protected, last ones pruned more
        return np.linspace(1, -1, blocks)
    scores, which = scores_of(bench, model, cell, correction.perturbed)
    found = scores.sweep[which]
    if correction.quantity == "absorption":
        return clipped_log(found.coefficient)
    if correction.quantity == "arrival":
        return centred_log(found.arrival)
    assert found.divergence is not None
    return centred_log(found.divergence)


def base_scores(bench: Bench, model: Model, cell: Cell) -> Scores:
    """Scores that hold the signals of the cell's base."""
    return scores_of(bench, model, cell, PRUNING)[0]
