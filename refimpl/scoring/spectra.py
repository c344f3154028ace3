"""AlphaPruning's alphas: the spectra of the weights, in units of linears."""

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.method.gram_spectrum import power_law
from refimpl.method.signals import PowerLaw, alphapruning_alpha, esd
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.running.settings import Resources
from refimpl.running.threads import Workers
from refimpl.running.work_units import Tick, results


@dataclass(frozen=True)
class Spectra:
    """The spectra of linears of a block, each of the same cost: a work unit.

    A computation in float64, which certifies, has `exact` ones: singular values, not Gram matrices.
    """

    block: int
    linears: tuple[str, ...]
    fit: str
    xmin: str
    linear_cost: float = 1.0
    exact: bool = False
    dtype: npt.DTypeLike = np.float64

    def cost(self, config: Config) -> float:
        """That of all its linears."""
        return self.linear_cost * len(self.linears)

    def run(self, model: Model, workers: Workers, tick: Tick) -> dict[str, PowerLaw]:
        """The power law of each linear, by its full name."""
        names = [f"blocks.{self.block}.{linear}" for linear in self.linears]
        tasks = [partial(self._law, model, name) for name in names]
        laws = workers.run(tasks, partial(tick, self.linear_cost))
        return dict(zip(names, laws, strict=True))

    def _law(self, model: Model, name: str) -> PowerLaw:
        """The power law of one linear; an error names it."""
        try:
            weight = model.weights[f"{name}.weight"].read(self.dtype)
            law, of = (alphapruning_alpha, esd(weight)) if self.exact else (power_law, weight)
            return law(
                of,
                "mid" if self.fit == "mid" else "peak",
                "intended" if self.xmin == "intended" else "shipped",
            )
        except RefimplError as error:
            raise RefimplError(f"{name}: {error.problem}", error.expected, error.remedy) from error


def power_laws(
    model: Model, fit: str, xmin: str, resources: Resources, linear_cost: float = 1.0
) -> tuple[tuple[PowerLaw, ...], ...]:
    """Fit a power law to the spectrum of every linear, as AlphaPruning does.

    Args:
        model: The model.
        fit: "peak" or "mid".
        xmin: "shipped" or "intended".
        resources: What it runs on: a block at a time here, or a linear at a time on workers.
        linear_cost: Cost of a linear, in the unit of the progress.

    Returns:
        Per block, the power laws of its linears in their order.
    """
    kept, exact = resources.partial, resources.dtype == np.float64
    finished = {} if kept is None else kept.results
    laws = {key: PowerLaw(**law) for key, law in finished.items() if key.startswith("blocks.")}
    units = []
    for i, linears in enumerate(model.config.linears):
        left = tuple(linear for linear in linears if f"blocks.{i}.{linear}" not in laws)
        together = [left] if resources.pool.executor is None else [(linear,) for linear in left]
        units += [Spectra(i, names, fit, xmin, linear_cost, exact) for names in together if names]
    for _, fitted in results(units, model, resources.pool, resources.workers, resources.tick):
        if kept is not None:
            kept.add({name: asdict(law) for name, law in fitted.items()})
        laws |= fitted
    return tuple(
        tuple(laws[f"blocks.{i}.{linear}"] for linear in linears)
        for i, linears in enumerate(model.config.linears)
    )


def spectra_cost(config: Config, length: int) -> float:
    """Cost of a model's spectra in block passes of `length` tokens.

    An operation of the eigenvalues takes about five times as long as one of a block pass.
    """
    shapes = [shape for linears in config.linears for shape in linears.values()]
    operations = sum(min(shape) ** 2 * (max(shape) + 4 * min(shape) / 3) for shape in shapes)
    return 5 * operations / (2 * length * float(config.block_sizes.mean()))
