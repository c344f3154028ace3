"""The perturbation experiment over a whole model, in units that can be kept and taken up again."""

from collections.abc import Iterator, Mapping
from dataclasses import astuple
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.method.perturbation import Perturbation
from refimpl.model.config import Config
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import add_sums
from refimpl.running.executors import LOCAL, Pool
from refimpl.running.threads import Progress, Workers
from refimpl.running.work_units import InOrder, results
from refimpl.scoring.journey import Journey
from refimpl.scoring.measurements import (
    Address,
    Measurements,
    Pruned,
    Squares,
    addresses,
    balanced,
    groups,
)
from refimpl.scoring.perturbed_state import Trace
from refimpl.storage.partial_results import PartialResults

KEPT = 32  # states per thread that travel together where what was found is kept: a kill loses them


def experiment(
    model: Model,
    ids: Array,
    plan: Perturbation,
    workers: Workers,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
    pruned: Pruned | None = None,
    divergence: bool = False,
    progress: Progress = lambda done, total: None,
    *,
    engine: Pool = LOCAL,
    part: PartialResults[str, Any] | None = None,
) -> Measurements:
    """Perturb every block's output and follow the drift to the end.

    Args:
        model: The model.
        ids: Token ids, [N, S].
        plan: The perturbation.
        workers: Threads.
        memory: Bytes for residual states, of all workers together.
        dtype: Of the computation.
        pruned: For the pruning perturbation: the pruned weights of a block.
        divergence: Whether to compare the output distributions too.
        progress: Called with block passes done and in all.
        engine: Where the units run; the numbers do not depend on it.
        part: Keeps what each unit gave, and holds what an earlier run found.

    Returns:
        Means over tokens, per eta, sequence, draw and block.

    Raises:
        RefimplError: Not even one perturbed state fits into `memory`.

    Source:
        arXiv:2606.15161; choices in docs/explanation/method.md, section 2.
    """
    config = model.config
    states = addresses(len(ids), config.num_blocks, plan)
    found, squares = Measurements.empty(states, divergence), InOrder[Squares]()
    counting = set({(a.sequence, a.block): a for a in states}.values())  # each token once
    known = _known({} if part is None else part.results)

    def note(traces: Mapping[Address, Trace], sums: Mapping[int, Squares]) -> None:
        for a, trace in traces.items():
            _note(found, a, trace, a in counting)
        for sequence, one in sums.items():
            for blocks in squares.add(sequence, one):
                for total_of, more in zip(found.squares, blocks, strict=True):
                    add_sums(total_of, more)

    note(*known)
    left = [a for a in states if a not in known[0]]
    length, keeping = ids.shape[1], part is not None
    parts = journeys(left, config, length, workers.threads, memory, dtype, engine, keeping)
    units = list(_units(parts, ids, known[1].keys(), plan, dtype, pruned, divergence))
    done, total = 0.0, sum(unit.cost(config) for unit in units)

    def tick(cost: float) -> None:
        nonlocal done
        done += cost
        progress(done, total)

    for _, seen in results(units, model, engine, workers, tick):
        if part is not None:
            part.add(
                {
                    f"state {' '.join(map(str, astuple(a)))}": astuple(t)
                    for a, t in seen.traces.items()
                }
                | {f"squares {sequence}": sums for sequence, sums in seen.squares.items()}
            )
        note(seen.traces, seen.squares)
    return found


def journeys(
    states: list[Address],
    config: Config,
    length: int,
    threads: int,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
    engine: Pool = LOCAL,
    kept: bool = False,
) -> list[list[Address]]:
    """Cut states into groups that travel together.

    Args:
        states: The states.
        config: The model's facts.
        length: Tokens, S.
        threads: Worker threads.
        memory: Bytes for residual states, of all workers together.
        dtype: Of the computation.
        engine: Where the groups run.
        kept: Whether what each group gave is kept.

    Returns:
        The groups.

    Raises:
        RefimplError: Not even one perturbed state fits into `memory`.
    """
    state_bytes = length * config.hidden_size * np.dtype(dtype).itemsize
    room, need = memory // engine.workers // state_bytes, 3 * state_bytes * engine.workers
    if room < 3:
        raise RefimplError(
            f"memory of {memory} bytes does not hold one experiment"
            + (f" for each of {engine.workers} workers" if engine.workers > 1 else ""),
            f"at least {need} bytes: 3 states of {length} x {config.hidden_size}",
            f"use --memory {need} or more, or a shorter --seq-len",
        )
    if engine.executor is None:
        return list(groups(states, min(room, KEPT * threads) if kept else room))
    return list(balanced(states, config.num_blocks, room, engine.workers))


def _known(found: Mapping[str, Any]) -> tuple[dict[Address, Trace], dict[int, Squares]]:
    """What an earlier run found."""
    traces: dict[Address, Trace] = {}
    squares: dict[int, Squares] = {}
    for key, value in found.items():
        kind, *numbers = key.split()
        if kind == "state":
            traces[Address(*map(int, numbers))] = Trace(*value)
        elif kind == "squares":
            squares[int(numbers[0])] = tuple(value)
    return traces, squares


def _units(
    parts: list[list[Address]],
    ids: Array,
    known: Any,
    plan: Perturbation,
    dtype: npt.DTypeLike,
    pruned: Pruned | None,
    divergence: bool,
) -> Iterator[Journey]:
    """Journeys of groups of states; the first one with a sequence sums the squares for it."""
    counted = set(known)
    for part in parts:
        sequences = dict.fromkeys(a.sequence for a in part)
        new = tuple(sorted(sequences.keys() - counted))
        counted |= sequences.keys()
        rows = {s: ids[s] for s in sequences}
        yield Journey(tuple(part), rows, new, plan, dtype, pruned, divergence)


def _note(found: Measurements, a: Address, trace: Trace, counting: bool) -> None:
    """Put what was seen of one state where it belongs."""
    where = (a.eta, a.sequence, a.draw, a.block)
    found.drift[where][a.block :] = trace.drift
    found.alignment[where][a.block :] = trace.alignment
    found.ratios[where] = trace.ratio
    found.left_out[a.eta, a.block] += trace.left_out
    if counting:
        found.sinks[a.block] += trace.sinks
    if found.divergence is not None:
        found.divergence[where] = trace.divergence
