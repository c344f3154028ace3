"""How far each step of a candidate may be off: its own tolerance, or what earlier ones make of it.

A base is a steep function of signals that lie close together, and a corrected allocation one of
coefficients. A candidate whose signals are within their tolerance is not to fail for that.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from refimpl.allocation.allocate import base_allocation
from refimpl.method.correction import clipped_log, corrected
from refimpl.method.projection import project
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.fed import Fed
from refimpl.oracle.judging.own_errors import own_of
from refimpl.oracle.judging.tolerance import FLOOR_16, SPARSEGPT, UNITS, tolerance_of


@lru_cache(maxsize=8)
def limits_of(case: Case, dtype: str, stepwise: bool = False) -> Mapping[str, float]:
    """How far each step may be off.

    ``max(8 own + 64 eps, moved + 64 eps)``: `moved` is how far a base moves when the signals
    behind it do, and a corrected allocation when its base and the coefficients do, by as much as
    they may be off. Step by step nothing moves: each is fed the case's numbers.

    Args:
        case: From `read_case`.
        dtype: The candidate's.
        stepwise: Whether it was fed the case's own values at each step.

    Returns:
        Largest errors by name; 0 for counts and bits.

    Raises:
        RefimplError: As `own_of` raises it.

    Source:
        ours (docs/explanation/tolerances.md).

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> limits = limits_of(read_case("fixtures/cases/llama"), "float32")
        >>> limits["dlp.signal"] < limits["dlp.base"] < 1e-4, limits["dlp.counts"]
        (True, 0.0)
    """
    errors = own_of(case, dtype, stepwise).errors
    made = {
        name: tolerance_of(name, truth, errors[name], dtype)
        for name, truth in case.expected.items()
    }
    if not stepwise:
        for base in case.recipe.bases:
            _widen(case, f"{base}.base", _bases(case, base, made), made, dtype)
            _widen(case, f"{base}.corrected", _corrections(case, base, made), made, dtype)
    return {name: x + moved_by_rounding(case, name, dtype) if x else x for name, x in made.items()}


def _widen(case: Case, step: str, moved: float, limits: dict[str, float], dtype: str) -> None:
    """Let a step be off by what moves it, and a floor."""
    floor = tolerance_of(step, case.expected[step], 0.0, dtype)
    limits[step] = max(limits[step], moved + floor)


def _bases(case: Case, base: str, limits: Mapping[str, float]) -> float:
    """How far a base moves with its signals."""
    name = f"{base}.signal"
    if name not in case.expected:
        return 0.0

    def projected(signal: Array) -> Array:
        whole, sparsity = np.full(len(signal), fed.sizes.sum()), case.recipe.sparsity
        return project(_unprojected(fed, base, {name: signal}), whole, sparsity)

    fed = Fed(case, case.model, np.float64, None)
    return moved_by(projected, case.expected[name], limits[name])


def _corrections(case: Case, base: str, limits: Mapping[str, float]) -> float:
    """How far a corrected allocation moves with its base and with the coefficients."""
    recipe, fed = case.recipe, Fed(case, case.model, np.float64, None)
    dense, coefficient = _unprojected(fed, base, {}), "absorption_coefficient"
    whole = np.full(len(dense), fed.sizes.sum())

    def final(allocation: Array, ratios: Array) -> Array:
        return corrected(
            allocation, clipped_log(ratios), np.arange(len(dense)), whole, recipe.sparsity,
            recipe.strength, recipe.max_correction,
        )  # fmt: skip

    ratios = case.expected[coefficient]
    by_base = moved_by(lambda x: final(x, ratios), dense, limits[f"{base}.base"])
    return by_base + moved_by(lambda x: final(dense, x), ratios, limits[coefficient])


def _unprojected(fed: Fed, base: str, signals: Mapping[str, Array]) -> Array:
    """A base of the case's signals, some of them others."""
    blocks, linears = fed.model.config.num_blocks, tuple(fed.model.config.linear_shapes)
    request = fed.case.recipe.request(base)
    return base_allocation(fed.signals(signals), request, blocks, linears, fed.sizes)


def moved_by(function: Callable[[Array], Array], x: Array, relative: float) -> float:
    """How far a function moves when each of its arguments is off by as much as it may be.

    ``max_k sum_i |f(x with x_i (1 + t)) - f(x)|_k / |f(x)|_k``, the larger of that and 1 / (1 + t).

    Args:
        function: Of a vector, or of rows that move together.
        x: Where, [L] or [L, ...].
        relative: How far each may be off, t; more than 1 counts as 1.

    Returns:
        The relative change of the worst number.

    Source:
        ours.

    Example:
        >>> round(moved_by(lambda x: x[:1] - x[1:], np.array([1.0, 0.9]), 1e-6) / 1e-6, 2)
        19.0
    """
    at, moved = function(x), np.zeros(())
    for i in range(len(x)):
        ways = []
        for factor in (1 + min(relative, 1.0), 1 / (1 + min(relative, 1.0))):
            other = np.array(x, np.float64)
            other[i] *= factor
            ways.append(np.abs(function(other) - at))
        moved = moved + np.maximum(*ways)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.where(moved == 0, 0.0, moved / np.abs(at))))


def moved_by_rounding(case: Case, step: str, dtype: str) -> float:
    """How far a step may move with weights that were rounded the other way.

    SparseGPT's new weights are rounded to the dtype of the file. Where that is coarser than the
    candidate's, one that lies between two numbers may become either, in a block that is shown or
    not, and what follows moves by units of the file's dtype.

    Args:
        case: The case.
        step: Name of the step.
        dtype: The candidate's.

    Returns:
        What is added to the tolerance: of steps of SparseGPT behind block 0, else 0.
    """
    if not step.startswith("sparsegpt.") or step.startswith("sparsegpt.blocks.0."):
        return 0.0
    names = {weight.stored.array.dtype.name for weight in case.model.weights.values()}
    unit = max((UNITS[name] for name in names & UNITS.keys()), default=0.0)
    return SPARSEGPT * FLOOR_16 * unit if unit > UNITS[dtype] else 0.0
