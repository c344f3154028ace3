"""Which perturbed states travel through the model together."""

from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.model.config import Config
from refimpl.running.settings import Resources
from refimpl.scoring.measurements import Address

ROWS = 512  # of a product: with more, it is hardly faster, and needs more memory
STATES_AT_RISK = 32  # per thread, in a group whose results are kept: a kill loses it

Addresses = tuple[Address, ...]


def state_bytes(config: Config, length: int, dtype: npt.DTypeLike) -> int:
    """Bytes of one state of `length` tokens, [S, D and what is carried]."""
    return length * config.state_size * np.dtype(dtype).itemsize


def stacks(states: Iterable[Address], length: int) -> list[Addresses]:
    """Cut states of `length` tokens into stacks, whose states share each matrix product.

    A stack holds neighbouring blocks of one sequence, draw and eta, of about `ROWS` tokens in all.
    A product's rounding may depend on its rows, so stacks follow from the addresses alone: memory,
    threads, workers and resumed runs cut none. They are in the order of their first states.

    Example:
        >>> [len(x) for x in stacks([Address(0, 0, 0, block) for block in range(5)], 256)]
        [2, 2, 1]
    """
    size = max(1, ROWS // length)
    order = {a: n for n, a in enumerate(states)}
    cut: list[Addresses] = []
    for _, together in groupby(sorted(order), lambda a: (a.sequence, a.draw, a.variant)):
        alike = tuple(together)
        cut += [alike[start : start + size] for start in range(0, len(alike), size)]
    return sorted(cut, key=lambda stack: order[stack[0]])


def state_groups(
    cut: list[Addresses],
    config: Config,
    length: int,
    resources: Resources,
    keep: bool,
    every: int = 0,
    copies: int = 1,
) -> list[list[Addresses]]:
    """Put stacks of states of `length` tokens into groups that travel together, as memory allows.

    Groups are smaller if finished units are to be kept. `every` sequences are in each group. So
    many `copies` of a state may be held at once.

    Raises:
        RefimplError: The memory does not hold one stack and the clean states.
    """
    workers, size = resources.at_once, state_bytes(config, length, resources.dtype)
    least = copies * max(map(len, cut), default=1) + 2 * max(every, 1)
    capacity, need = resources.memory // workers // size, least * size * workers
    if capacity < least:
        raise RefimplError(
            f"memory of {resources.memory} bytes does not hold one experiment"
            + (f" for each of {workers} workers" if workers > 1 else ""),
            f"at least {need} bytes: {least} states of {length} x {config.state_size}",
            f"use --memory {need} or more, or a shorter --seq-len",
        )
    if every:
        states = sum(map(len, cut))
        share = -(-states // (2 * workers)) if resources.executor else states
        return list(groups(cut, min(capacity, share + 2 * every), 2 * every))
    if resources.executor is not None:
        return list(shared_out(cut, capacity, workers, copies))
    at_risk = copies * STATES_AT_RISK * resources.workers.threads
    return list(groups(cut, min(capacity, at_risk) if keep else capacity, copies=copies))


def groups(
    cut: Iterable[Addresses], capacity: int, clean: int = 0, copies: int = 1
) -> Iterator[list[Addresses]]:
    """Put stacks, in order, into groups that fit: a sequence's clean state counts 2.

    If the clean states of all sequences are in each, they count `clean`. A group has one stack.
    """
    group, sequences, states = list[Addresses](), set[int](), 0
    for stack in cut:
        held = clean or 2 * len(sequences | {stack[0].sequence})
        if group and states + copies * len(stack) + held > capacity:
            yield group
            group, sequences, states = [], set(), 0
        group.append(stack)
        sequences.add(stack[0].sequence)
        states += copies * len(stack)
    if group:
        yield group


def shared_out(
    cut: Iterable[Addresses], capacity: int, workers: int, copies: int = 1
) -> Iterator[list[Addresses]]:
    """Put stacks into groups of one sequence and draw each, about two per worker, as they fit.

    The states of a sequence and draw that are perturbed first, and travel furthest, come first.
    """
    by_draw: dict[tuple[int, int], list[Addresses]] = {}
    for stack in cut:
        by_draw.setdefault((stack[0].sequence, stack[0].draw), []).append(stack)
    pieces = -(-2 * workers // max(1, len(by_draw)))
    for together in by_draw.values():
        ordered = sorted(together, key=lambda stack: (stack[0].block, stack[0].variant))
        share = 2 + copies * -(-sum(map(len, ordered)) // pieces)
        yield from groups(ordered, min(capacity, share), copies=copies)
