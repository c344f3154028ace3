"""What the peers' code gives where a case differs from it on purpose."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np

from refimpl.allocation.allocate import Allocation, base_only
from refimpl.allocation.request import Request
from refimpl.allocation.scores import Signals
from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import INPUT_OF
from refimpl.oracle.judging.measures import error_of, measure_of
from refimpl.oracle.steps import Recipe
from refimpl.pruners.decision import Method, Pruner, decision


def peer_steps(
    model: Model, recipe: Recipe, expected: Mapping[str, Array], sequences: int
) -> dict[str, Array]:
    """Compute what the peers' shipped code makes of a case's own signals and statistics.

    Signals, scores and statistics are the same in both. For each base its sparsities [L] and counts
    [L, linears], neither projected nor corrected, with the peers' rounding; and of block 0, at the
    first base, the decisions of Wanda and SparseGPT.

    Args:
        model: From `read_model`.
        recipe: What the case computes.
        expected: Its steps.
        sequences: Number of sequences that sums were taken over.

    Returns:
        Arrays by the names of the steps that they differ from, behind `peer.`.

        Left out is what their code fails on: signals that are all equal, a sparsity of 1.

    Source:
        docs/explanation/deviations.md, "exact and peer"; held against the peers' own numbers.

    Example:
        >>> from refimpl.oracle.case import read_case
        >>> case = read_case("fixtures/cases/llama")
        >>> found = peer_steps(case.model, case.recipe, case.expected, 2)
        >>> exact, peer = case.expected["owl.counts"], found["peer.owl.counts"]
        >>> int(exact.sum()), int(peer.sum())  # int(C s) of every row is less than was asked for
        (14592, 14376)
    """
    return {f"peer.{name}": value for name, value in _steps(model, recipe, expected, sequences)}


def as_peers(
    step: str, actual: Mapping[str, Array], peer: Mapping[str, Array], limit: float
) -> bool:
    """Whether a candidate computed what the peers' code gives, in place of what is meant.

    Args:
        step: Its name.
        actual: The candidate's arrays by name.
        peer: A case's numbers of the peers.
        limit: Largest error.

    Returns:
        Whether it did; False where the peers' number is not known.
    """
    theirs = peer.get(f"peer.{step}")
    if theirs is None:
        return False
    error, _, fault = error_of(step, actual[step], theirs, measure_of(step, theirs.dtype))
    return not fault and error <= limit


def _steps(
    model: Model, recipe: Recipe, expected: Mapping[str, Array], sequences: int
) -> Iterator[tuple[str, Array]]:
    """The same, by the names of the steps."""
    config = model.config
    asked = {base: _request(recipe, base) for base in recipe.bases}
    signals = _signals(expected, asked)
    made: dict[str, Allocation] = {}
    for base, request in asked.items():
        with suppress(RefimplError):
            found = base_only(signals, request, config.linear_shapes, config.num_blocks)
            made[base] = found
            yield f"{base}.base", found.base_sparsity
            yield f"{base}.counts", found.linear_pruned
    if 0 not in recipe.shown or recipe.bases[0] not in made:
        return
    dense, goals = model.block(0, np.float64), made[recipe.bases[0]].linear_sparsity[0]
    pruners: tuple[tuple[Method, str], ...] = (("wanda", "squares"), ("sparsegpt", "products"))
    for method, kind in pruners:
        for j, name in enumerate(config.linear_shapes):
            total = expected[f"{method}.blocks.0.{INPUT_OF[name]}.{kind}"]
            pruner, weight = Pruner(method, recipe.damping), dense[f"{name}.weight"]
            with suppress(RefimplError):
                keep, _ = decision(weight, total, sequences, float(goals[j]), pruner, "peer")
                yield f"{method}.blocks.0.{name}.keep", np.packbits(keep, axis=1)


def _request(recipe: Recipe, base: str) -> Request:
    """What a peer is asked for."""
    return replace(recipe.request(base), correct=None, compat="peer")


def _signals(expected: Mapping[str, Array], asked: Mapping[str, Request]) -> Signals:
    """The case's own signals, with the options that they were made with."""
    options = {base: request.options for base, request in asked.items()}
    nothing = np.full(0, np.nan)
    alpha = options.get("alphapruning", {})
    return Signals(
        float(options.get("owl", {}).get("m", 5.0)),
        expected.get("owl.signal", nothing),
        str(options.get("dlp", {}).get("statistic", "mean")),
        expected.get("dlp.signal", nothing),
        str(alpha["fit"]) if alpha else None,
        str(alpha["xmin"]) if alpha else None,
        expected.get("alphapruning.signal"),
    )
