"""AlphaPruning's alphas: the spectra of the weights, in units of linears."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.method.signals import PowerLaw, alphapruning_alpha, esd
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.running.executors import LOCAL, Pool
from refimpl.running.threads import Workers
from refimpl.running.work_units import results
from refimpl.storage.partial_results import PartialResults


@dataclass(frozen=True)
class Spectra:
    """The spectra of some linears of a block.

    Args:
        block: The block.
        linears: Names of the linears.
        fit: "peak" or "mid".
        xmin: "shipped" or "intended".
    """

    block: int
    linears: tuple[str, ...]
    fit: str
    xmin: str
    dtype: npt.DTypeLike = np.float64

    def cost(self, config: Config) -> float:
        """Linears."""
        return len(self.linears)

    def run(
        self, model: Model, workers: Workers, tick: Callable[[float], None]
    ) -> dict[str, PowerLaw]:
        """The power law of each linear, by its full name."""
        names = [f"blocks.{self.block}.{linear}" for linear in self.linears]
        laws = workers.run([partial(self._law, model, name) for name in names], partial(tick, 1))
        for file in model.files:
            file.release()
        return dict(zip(names, laws, strict=True))

    def _law(self, model: Model, name: str) -> PowerLaw:
        """The power law of one linear; an error names it."""
        try:
            return alphapruning_alpha(
                esd(model.weights[f"{name}.weight"].read(self.dtype)),
                "mid" if self.fit == "mid" else "peak",
                "intended" if self.xmin == "intended" else "shipped",
            )
        except RefimplError as error:
            raise RefimplError(f"{name}: {error.problem}", error.expected, error.remedy) from error


def spectra(
    model: Model,
    workers: Workers,
    fit: str,
    xmin: str,
    tick: Callable[[float], None] = lambda linears: None,
    *,
    engine: Pool = LOCAL,
    part: PartialResults[str, Any] | None = None,
) -> tuple[tuple[PowerLaw, ...], ...]:
    """AlphaPruning's alpha of every linear, from the spectra of the weights.

    Args:
        model: The model.
        workers: Threads.
        fit: "peak" or "mid".
        xmin: "shipped" or "intended".
        tick: Called with the linears done.
        engine: Where spectra are computed: a block at a time here, or a linear at a time.
        part: Keeps what was found, and holds what an earlier run found.

    Returns:
        Per block, the alphas of its linears in the order of `config.LINEARS`.
    """
    blocks, linears = range(model.config.num_blocks), tuple(model.config.linear_shapes)
    known = {} if part is None else part.results
    laws = {key: PowerLaw(**law) for key, law in known.items() if key.startswith("blocks.")}
    units = []
    for i in blocks:
        left = tuple(linear for linear in linears if f"blocks.{i}.{linear}" not in laws)
        each = [left] if engine.executor is None else [(linear,) for linear in left]
        units += [Spectra(i, some, fit, xmin) for some in each if some]
    for _, found in results(units, model, engine, workers, tick):
        if part is not None:
            part.add({name: asdict(law) for name, law in found.items()})
        laws |= found
    return tuple(tuple(laws[f"blocks.{i}.{linear}"] for linear in linears) for i in blocks)
