"""Which perturbed states travel through the model together."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.running.settings import Resources
from refimpl.scoring.measurements import Address

STATES_AT_RISK = 32  # per thread, in a group whose partial results are kept: a kill loses it


def state_bytes(config: Config, length: int, dtype: npt.DTypeLike) -> int:
    """Bytes of one residual state of `length` tokens, [S, D]."""
    return length * config.hidden_size * np.dtype(dtype).itemsize


def state_groups(
    states: list[Address],
    config: Config,
    length: int,
    resources: Resources,
    keep: bool,
    every: int = 0,
) -> list[list[Address]]:
    """Cut states of `length` tokens into groups that travel together, as many as memory holds.

    Groups are smaller if partial results are to be kept after each. If so many sequences have to be
    in `every` group, their clean states are.

    Raises:
        RefimplError: The memory does not hold one perturbed state and the clean ones.
    """
    workers, size = resources.pool.workers, state_bytes(config, length, resources.dtype)
    least = 1 + 2 * max(every, 1)
    capacity, need = resources.memory // workers // size, least * size * workers
    if capacity < least:
        raise RefimplError(
            f"memory of {resources.memory} bytes does not hold one experiment"
            + (f" for each of {workers} workers" if workers > 1 else ""),
            f"at least {need} bytes: {least} states of {length} x {config.hidden_size}",
            f"use --memory {need} or more, or a shorter --seq-len",
        )
    if every:
        blocks = -(-len(states) // (2 * workers)) if resources.pool.executor else len(states)
        size = max(1, min(capacity - 2 * every, blocks))
        return [states[start : start + size] for start in range(0, len(states), size)]
    if resources.pool.executor is not None:
        return list(balanced(states, config.num_blocks, capacity, workers))
    at_risk = STATES_AT_RISK * resources.workers.threads
    return list(groups(states, min(capacity, at_risk) if keep else capacity))


def groups(states: list[Address], capacity: int) -> Iterator[list[Address]]:
    """Cut states, in order, into groups that fit: a state counts 1, a sequence's clean one 2."""
    group, sequences = list[Address](), set[int]()
    for state in states:
        if group and len(group) + 1 + 2 * len(sequences | {state.sequence}) > capacity:
            yield group
            group, sequences = [], set()
        group.append(state)
        sequences.add(state.sequence)
    if group:
        yield group


def balanced(
    states: list[Address], blocks: int, capacity: int, workers: int
) -> Iterator[list[Address]]:
    """Cut states into groups of one sequence and draw each, for several workers.

    If there are fewer sequences and draws than twice the workers, each is cut by blocks into
    groups of about the same number of block passes: a state perturbed early travels further. A
    worker holds `capacity` states, of which the clean one counts 2.
    """
    by_draw: dict[tuple[int, int], list[Address]] = {}
    for state in states:
        by_draw.setdefault((state.sequence, state.draw), []).append(state)
    pieces = -(-2 * workers // max(1, len(by_draw)))
    for together in by_draw.values():
        ordered = sorted(together, key=lambda a: (a.block, a.eta))
        share = sum(blocks - a.block for a in ordered) / pieces
        group, passes = list[Address](), 0
        for state in ordered:
            group.append(state)
            passes += blocks - state.block
            if passes >= share or len(group) + 2 >= capacity:
                yield group
                group, passes = [], 0
        if group:
            yield group
