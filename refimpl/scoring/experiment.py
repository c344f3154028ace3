"""The perturbation experiment over a whole model, in work units whose results can be kept."""

from math import isclose

from refimpl.method.perturbation import Perturbation
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.running.settings import Resources
from refimpl.running.work_units import results
from refimpl.scoring.dense_statistics import SummedSquares
from refimpl.scoring.grouping import stacks, state_groups
from refimpl.scoring.measurements import Address, Measurements, PruneBlock, addresses
from refimpl.scoring.state_group import GroupResult, StateGroup


def experiment(
    model: Model,
    ids: Array,
    plan: Perturbation,
    resources: Resources,
    prune_block: PruneBlock | None = None,
    *,
    divergence: bool = False,
) -> Measurements:
    """Perturb every block's output and follow the drift to the end.

    Args:
        model: The model.
        ids: Token ids, [N, S].
        plan: The perturbation.
        resources: What it runs on; only the dtype changes the numbers.
        prune_block: For the pruning perturbation: the pruned weights of a block.
        divergence: Whether to compare the output distributions too.

    Returns:
        Means over tokens, per eta, sequence, draw and block.

    Raises:
        RefimplError: The memory does not hold one perturbed state.

    Source: arXiv:2606.15161; choices in docs/explanation/method.md, section 2.
    """
    config, partial = model.config, resources.partial
    numbers = [len(block) for block in config.linears]
    states = addresses(len(ids), config.num_blocks, plan, numbers)
    measured = Measurements.empty(
        plan, len(ids), config.num_blocks, divergence, linears=max(numbers)
    )
    squares = SummedSquares(measured.squares)
    counting = set({(a.sequence, a.block): a for a in states}.values())  # each sink once

    def note(result: GroupResult) -> None:
        for a, measures in result.measures.items():
            measured.drift[a.index][a.block :] = measures.drift
            measured.alignment[a.index][a.block :] = measures.alignment
            measured.ratios[a.index] = measures.ratio
            measured.left_out[a.eta, a.block] += measures.left_out
            measured.sinks[a.block] += measures.sinks if a in counting else 0
            if measured.divergence is not None:
                measured.divergence[a.index] = measures.divergence
        for sequence, sums in result.squares.items():
            squares.add(sequence, sums)

    finished = GroupResult.from_lines({} if partial is None else partial.results)
    cut, left = stacks(states, ids.shape[1]), list[tuple[Address, ...]]()
    for stack in cut:
        if not set(stack) <= finished.measures.keys():  # one that is kept in part is computed again
            left.append(stack)
            for a in stack:
                finished.measures.pop(a, None)
    note(finished)
    every = len(ids) if plan.probe_pruner == "sparsegpt" else 0  # its Hessian is of all
    keep = partial is not None
    groups = state_groups(left, config, ids.shape[1], resources, keep, every)
    counted, units = set(finished.squares), list[StateGroup]()
    for group in groups:  # the first with a sequence sums its squares
        rows = {n: ids[n] for n in (range(every) or sorted({stack[0].sequence for stack in group}))}
        new = () if prune_block else tuple(sorted(rows.keys() - counted))
        counted |= rows.keys()
        options = plan, resources.dtype, prune_block, divergence
        units.append(StateGroup(tuple(group), rows, new, *options))
    total = resources.done + sum(unit.cost(config) for unit in units)
    if not isclose(total, resources.total):  # rounding alone does not change what was reported
        resources.total = total
    for _, result in results(units, model, resources.pool, resources.workers, resources.tick):
        if partial is not None:
            partial.add(result.lines)
        note(result)
    return measured
