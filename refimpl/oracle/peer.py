"""The numbers of the peers' code where a case differs from it on purpose."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from refimpl.allocation.allocate import Allocation, base_only
from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of
from refimpl.oracle.judging.measures import error_of
from refimpl.oracle.recipe import Recipe
from refimpl.pruners.decision import PrunerOptions, decision

SHIPPED = ("owl", "alphapruning", "dlp", "uniform")  # bases with code of the peers


def peer_steps(
    model: Model, recipe: Recipe, expected: Mapping[str, Array], sequences: int
) -> dict[str, Array]:
    """What the peers' shipped code makes of a case's own signals and statistics, behind `peer.`.

    Of each base its sparsities and counts, and block 0's decisions of Wanda and SparseGPT; inputs
    on which their code fails are left out (docs/explanation/deviations.md, "exact and peer").
    """
    return {f"peer.{name}": value for name, value in _steps(model, recipe, expected, sequences)}


def equals_peer(
    step: str, actual: Mapping[str, Array], peer: Mapping[str, Array], tolerance: float
) -> bool:
    """Whether a candidate computed the peers' number of a step in place of the case's."""
    theirs = peer.get(f"peer.{step}")
    if theirs is None:
        return False
    error, _, fault = error_of(step, actual[step], theirs)
    return not fault and error <= tolerance


def _steps(
    model: Model, recipe: Recipe, expected: Mapping[str, Array], sequences: int
) -> Iterator[tuple[str, Array]]:
    """The same, by the names of the steps."""
    config = model.config
    allocations: dict[str, Allocation] = {}
    for base in (x for x in recipe.bases if x in SHIPPED):
        request = replace(recipe.request(base), correct=None, compat="peer")
        with suppress(RefimplError):
            allocation = base_only(recipe.signals(expected, base), request, config.linears)
            allocations[base] = allocation
            yield f"{base}.base", allocation.base_sparsity
            yield f"{base}.counts", allocation.linear_pruned
    if 0 not in recipe.shown or recipe.bases[0] not in allocations:
        return
    dense, goals = model.block(0, np.float64), allocations[recipe.bases[0]].linear_sparsity[0]
    pruners: tuple[tuple[str, str], ...] = (("wanda", "squares"), ("sparsegpt", "products"))
    for method, kind in pruners:
        for j, name in enumerate(config.linears[0]):
            total = expected[f"{method}.blocks.0.{input_of(name)}.{kind}"]
            pruner, weight = PrunerOptions(method, recipe.damping), dense[f"{name}.weight"]
            with suppress(RefimplError):
                keep, _ = decision(weight, total, sequences, float(goals[j]), pruner, "peer")
                yield f"{method}.blocks.0.{name}.keep", np.packbits(keep, axis=1)
