"""The perturbation experiment over a whole model, in work units whose results can be kept."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby

from refimpl.allocation.request import Perturbation, Probes
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.stream import add_sums, input_of, state_bytes
from refimpl.pruning.block import matrix_bytes
from refimpl.running.settings import Resources, require_memory
from refimpl.scoring.measurements import (
    Address,
    Measurements,
    Result,
    Squares,
    addresses,
)
from refimpl.scoring.state_group import PrunedBlocks, StateGroup

_ROWS = 512  # of a product: with more, it is hardly faster, and needs more memory
LEAST_SEQUENCES = 3  # of probes: the errors of two are often far too small by chance
STATES_AT_RISK = 32  # per thread, in a group whose results are kept: a kill loses it
SEQUENCES_AT_RISK = 8  # the same of sequences without perturbed states

Addresses = tuple[Address, ...]


def probing_bytes(config: Config, plan: Perturbation) -> int:
    """Bytes of a block's outer products, if the probes need them."""
    if not isinstance(plan, Probes):
        return 0
    return max(
        sum(matrix_bytes(linears, plan.pruner_options)) for linears in config.linears
    )


def stacks(states: Iterable[Address], length: int) -> list[Addresses]:
    """Cut states of `length` tokens into stacks, whose states share each matrix product.

    A stack holds neighbouring blocks of one sequence, draw and eta, of about `_ROWS` tokens in all.
    A product's rounding may depend on its rows, so stacks follow from the addresses alone: memory,
    threads and resumed runs cut none. They are in the order of their first states.

    Example:
        >>> [len(x) for x in stacks([Address(0, 0, 0, block) for block in range(5)], 256)]
        [2, 2, 1]
    """
    size = max(1, _ROWS // length)
    order = {a: n for n, a in enumerate(states)}
    cut: list[Addresses] = []
    for _, together in groupby(
        sorted(order), lambda a: (a.sequence, a.draw, a.variant)
    ):
        alike = tuple(together)
        cut += [alike[start : start + size] for start in range(0, len(alike), size)]
    return sorted(cut, key=lambda stack: order[stack[0]])


def grouped(
    cut: Iterable[Addresses], capacity: int, clean: int = 0
) -> Iterator[list[Addresses]]:
    """Put stacks, in order, into groups that fit: a sequence's clean state counts 2.

    If the clean states of all sequences are in each, they count `clean`. A group has one stack.
    """
    group, sequences, states = list[Addresses](), set[int](), 0
    for stack in cut:
        held = clean or 2 * len(sequences | {stack[0].sequence})
        if group and states + len(stack) + held > capacity:
            yield group
            group, sequences, states = [], set(), 0
        group.append(stack)
        sequences.add(stack[0].sequence)
        states += len(stack)
    if group:
        yield group


class SummedSquares:
    """Squares over all sequences, added by number of the sequence, whichever is computed first."""

    def __init__(self, total: Squares) -> None:
        self.total, self._next, self._waiting = total, 0, dict[int, Squares]()

    def note(self, result: Result) -> None:
        """Add the squares of each sequence when those of all sequences before it are added."""
        self._waiting |= result.squares
        while self._next in self._waiting:
            for total, sums in zip(
                self.total, self._waiting.pop(self._next), strict=True
            ):
                add_sums(total, sums)
            self._next += 1


def experiment(
    model: Model,
    ids: Array,
    plan: Perturbation,
    resources: Resources,
    pruning: PrunedBlocks | None = None,
    *,
    divergence: bool = False,
    enough: Callable[[Measurements], bool] | None = None,
) -> Measurements:
    """Perturb every block's output and follow the drift to the end.

    Args:
        model: The model.
        ids: Token ids, [N, S].
        plan: The perturbation.
        resources: What it runs on; only the dtype changes the numbers.
        pruning: For the pruning perturbation: how a block is pruned.
        divergence: Whether to compare the output distributions too.
        enough: Whether what three or more sequences gave suffices, so that no further one is begun.

    Returns:
        Means over tokens, per eta, sequence, draw and block; of the sequences that were begun.

    Source: arXiv:2606.15161; choices in docs/explanation/method.md, section 2.
    """
    config = model.config
    measured = Measurements.empty(plan, len(ids), config.num_blocks, divergence)
    squares = SummedSquares(measured.squares)

    def note(result: Result) -> None:
        squares.note(result)
        for a, state in result.states.items():
            measured.drift[a.index][a.block :] = state.drift
            measured.alignment[a.index][a.block :] = state.alignment
            measured.steps[a.index][a.block : -1] = state.steps
            measured.ratios[a.index] = state.ratios
            measured.left_out[a.variant, a.block] += state.left_out
            if a.variant == 0:
                measured.sinks[a.block] += (
                    state.sinks if a.draw == 0 else 0
                )  # each once
                measured.sink_share[a.sequence, a.block] = state.sink_share
            if measured.divergence is not None:
                measured.divergence[a.index] = state.divergence

    apart = enough is not None
    rounds = work_list(config, ids, plan, resources, pruning, divergence, apart)
    note(Result.of_names(resources.earlier))
    resources.total = resources.done + sum(unit.cost(config) for unit in chain(*rounds))
    for n, units in enumerate(rounds, LEAST_SEQUENCES - 1):
        if n >= LEAST_SEQUENCES and enough is not None and enough(measured.first(n)):
            measured = measured.first(n)
            resources.total = resources.done  # whatever was left out
            resources.tick(0)
            break
        for unit in units:
            result = unit.run(model, resources.workers, resources.tick)
            resources.keep(result.by_name)
            note(result)
    return measured


def work_list(
    config: Config,
    ids: Array,
    plan: Perturbation,
    resources: Resources,
    pruning: PrunedBlocks | None = None,
    divergence: bool = False,
    apart: bool = False,
) -> list[list[StateGroup]]:
    """The work units of the experiment, but for what is finished, in a list.

    If apart, the first `LEAST_SEQUENCES` have a list, and each later sequence one of its own.

    Stacks travel in groups that fit into memory, smaller ones if their results are kept.

    Raises:
        RefimplError: The memory does not hold one stack and the clean states.
    """
    length, dtype = ids.shape[1], resources.dtype
    states = addresses(len(ids), config.num_blocks, plan)
    earlier = Result.of_names(resources.earlier)
    # The states of a stack are in the same unit.
    left = [x for x in stacks(states, length) if x[0] not in earlier.states]
    beside, size = probing_bytes(config, plan), state_bytes(config, length, dtype)
    every = len(ids) if beside else 0  # the Hessian is of all
    least = max(map(len, left), default=1) + 2 * max(every, 1)
    said = f"{least} states of {length} x {config.state_size}"
    said += f", and {beside} bytes for the outer products of inputs" if beside else ""
    need = least * size + beside
    require_memory(
        resources.memory, need, "one experiment", said, "a shorter `seq_len`"
    )
    capacity = (resources.memory - beside) // size
    if resources.finished and not every:
        capacity = min(capacity, STATES_AT_RISK * resources.workers.threads)
    together, counted, rounds = [left], {*earlier.squares}, list[list[StateGroup]]()
    if apart:
        later = range(LEAST_SEQUENCES, plan.perturbed_samples(len(ids)))
        together = [[x for x in left if x[0].sequence < LEAST_SEQUENCES]]
        together += [[x for x in left if x[0].sequence == n] for n in later]
    for cut in together:
        rounds.append([])
        for group in grouped(cut, capacity, 2 * every):
            rows = {
                n: ids[n]
                for n in (range(every) or sorted({x[0].sequence for x in group}))
            }
            # The first group with a sequence sums its squares.
            new = (
                () if isinstance(plan, Probes) else tuple(sorted(rows.keys() - counted))
            )
            counted |= rows.keys()
            rounds[-1].append(
                StateGroup(tuple(group), rows, new, plan, dtype, pruning, divergence)
            )
    return rounds


def dense_squares(model: Model, ids: Array, resources: Resources) -> Squares:
    """Sums over all ids [N, S] of the squared inputs of the dense linears, [in] each, float64."""
    squares = SummedSquares(tuple({} for _ in model.config.blocks))
    earlier = Result.of_names(resources.earlier)
    left, dtype = (
        [n for n in range(len(ids)) if n not in earlier.squares],
        resources.dtype,
    )
    read = ({input_of(x): y for x, (_, y) in z.items()} for z in model.config.linears)
    of_sums = 8 * sum(sum(block.values()) for block in read)  # float64
    of_states = 2 * state_bytes(model.config, ids.shape[1], dtype)
    size = max(1, resources.memory // (of_states + of_sums))
    if resources.finished:
        size = min(size, SEQUENCES_AT_RISK * resources.workers.threads)
    squares.note(earlier)
    for start in range(0, len(left), size):
        numbers = left[start : start + size]
        unit = StateGroup((), {n: ids[n] for n in numbers}, tuple(numbers), dtype=dtype)
        result = unit.run(model, resources.workers, resources.tick)
        resources.keep(result.by_name)
        squares.note(result)
    return squares.total
