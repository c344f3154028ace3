"""The perturbation experiment over a whole model.

All perturbed states of a group of sequences travel through each block together with the clean
ones, so a block is loaded once per group and nothing before the perturbed block is computed twice.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.jobs.execution import MIB, Progress, Workers
from refimpl.jobs.measurements import Address, Measurements, Pruned, addresses, groups
from refimpl.method import perturbation as push
from refimpl.method.absorption import known_mean, left_out, surviving_drift
from refimpl.method.divergence import RunningDivergence
from refimpl.method.perturbation import Perturbation
from refimpl.model.checkpoint import Model
from refimpl.model.config import Config
from refimpl.model.forward import Place, Weights, block, embed, head, places
from refimpl.model.kernels import TILED
from refimpl.model.ops import Array
from refimpl.model.statistics import add_sums, block_with_sums, sum_of_squares

HEAD_BYTES = 8 * MIB  # logits of one state held at a time


Clean = Future[tuple[Array, dict[str, Array]]]
"""A clean state after a block, [1, S, D], on its way, and the squares of its linears' inputs."""


class _State:
    """A perturbed state under way."""

    def __init__(self) -> None:
        self.drift: list[float] = []
        self.alignment: list[float] = []

    def start(self, make: Callable[[], Array], clean: Clean, plan: Perturbation) -> None:
        """Make the state and measure it where it was made."""
        pushed, h = make(), clean.result()[0]
        self.kept = push.kept_tokens(h[0], plan.sink)
        self.h = np.where(self.kept[None, :, None], pushed, h)
        self.first = self.measure(h, plan.norm)

    def move(
        self, weights: Weights, place: Place, config: Config, clean: Clean, norm: push.Norm
    ) -> None:
        """Pass through one block and measure against the clean state after it."""
        self.h = block(self.h, weights, place, config, kernels=TILED)
        self.measure(clean.result()[0], norm)

    def measure(self, clean: Array, norm: push.Norm) -> Array:
        """Remember how far the state is from the clean one; the drift per token."""
        found = push.deviation(self.h[0], clean[0], self.kept, norm)
        self.drift.append(float(known_mean(found.drift)))
        self.alignment.append(float(known_mean(found.alignment)))
        self.last = found.drift
        return found.drift


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
) -> Measurements:
    """Perturb every block's output and follow the drift to the end.

    Args:
        model: The model.
        ids: Token ids, [N, S].
        plan: The perturbation.
        workers: Threads.
        memory: Bytes for residual states.
        dtype: Of the computation.
        pruned: For the pruning perturbation: the pruned weights of a block.
        divergence: Whether to compare the output distributions too.
        progress: Called with block passes done and in all.

    Returns:
        Means over tokens, per eta, sequence, draw and block.

    Raises:
        RefimplError: Not even one perturbed state fits into `memory`.

    Source:
        arXiv:2606.15161; choices in docs/explanation/method.md, section 2.
    """
    config, (count, length) = model.config, ids.shape
    state_bytes = length * config.hidden_size * np.dtype(dtype).itemsize
    room = memory // state_bytes
    if room < 3:
        raise RefimplError(
            f"memory of {memory} bytes does not hold one experiment",
            f"at least {3 * state_bytes} bytes: 3 states of {length} x {config.hidden_size}",
            f"use --memory {3 * state_bytes} or more, or a shorter --seq-len",
        )
    states = addresses(count, config.num_blocks, plan)
    parts = list(groups(states, room))
    blocks, per_head = config.num_blocks, head_cost(config) if divergence else 0
    total: float = sum(len({a.sequence for a in part}) * (blocks + per_head) for part in parts)
    total += sum(blocks - a.block + per_head for a in states)
    done = 0.0

    def tick(units: float = 1) -> None:
        nonlocal done
        done += units
        progress(done, total)

    found = Measurements.empty(states, divergence)
    counted: set[int] = set()
    for part in parts:
        ended, clean, sums = _travel(model, ids, part, plan, workers, dtype, pruned, tick)
        for a, state in ended.items():
            where = (a.eta, a.sequence, a.draw, a.block)
            found.drift[where][a.block :] = state.drift
            found.alignment[where][a.block :] = state.alignment
            share = surviving_drift(state.last, state.first)
            found.ratios[where] = known_mean(share)
            found.left_out[a.eta, a.block] += left_out(share, state.kept, plan.norm)
            if a.eta == a.draw == 0:
                found.sinks[a.block] += np.count_nonzero(~state.kept)
        for total_of, sums_of in zip(found.squares, sums, strict=True):
            for sequence in sorted(sums_of.keys() - counted):
                add_sums(total_of, sums_of[sequence])
        counted |= clean.keys()
        if found.divergence is not None:
            for a, value in _divergences(model, ended, clean, workers, dtype, tick):
                found.divergence[a.eta, a.sequence, a.draw, a.block] = value
    return found


def _travel(
    model: Model,
    ids: Array,
    part: list[Address],
    plan: Perturbation,
    workers: Workers,
    dtype: npt.DTypeLike,
    pruned: Pruned | None,
    tick: Callable[..., None],
) -> tuple[dict[Address, _State], dict[int, Array], list[dict[int, dict[str, Array]]]]:
    """Take one group of states, and the clean ones they belong to, through all blocks."""
    config, positions = model.config, np.arange(ids.shape[1])
    where = places(positions, config, dtype)
    clean = {
        s: embed(ids[s : s + 1], positions, model.embedding(), config, dtype)
        for s in dict.fromkeys(a.sequence for a in part)
    }
    states: dict[Address, _State] = {}
    squares: list[dict[int, dict[str, Array]]] = []
    for i, kind in enumerate(config.blocks):
        weights, place, before = model.block(i, dtype), where[kind], clean
        born = [a for a in part if a.block == i]
        thinned = pruned(i, weights) if born and pruned is not None else None
        # Tasks start in order: the clean ones come first and wait for nobody.
        ahead = {
            s: workers.submit(
                partial(block_with_sums, sum_of_squares, h, weights, place, config, TILED)
            )
            for s, h in before.items()
        }
        tasks = [
            partial(state.move, weights, place, config, ahead[a.sequence], plan.norm)
            for a, state in states.items()
        ]
        for a in born:
            if thinned is None:
                make = partial(_with_noise, ahead[a.sequence], a, plan)
            else:
                make = partial(block, before[a.sequence], thinned, place, config, kernels=TILED)
            states[a] = _State()
            tasks.append(partial(states[a].start, make, ahead[a.sequence], plan))
        workers.run(tasks, tick)
        clean = {s: future.result()[0] for s, future in ahead.items()}
        squares.append({s: future.result()[1] for s, future in ahead.items()})
        tick(len(ahead))
    return states, clean, squares


def _with_noise(clean: Clean, a: Address, plan: Perturbation) -> Array:
    """The clean state with the noise that belongs to this address."""
    (h,) = clean.result()[0]
    e = push.noise(plan.seed, a.sequence, a.block, a.draw, h.shape)
    kept, eta = push.kept_tokens(h, plan.sink), plan.eta[a.eta]
    return push.perturbed(h, e, eta, kept, plan.noise_scale, plan.noise_shape)[None]


def head_cost(config: Config) -> float:
    """Cost of the head in block passes, for the progress bar."""
    return config.vocab_size * config.hidden_size / config.block_size


def _divergences(
    model: Model,
    states: Mapping[Address, _State],
    clean: Mapping[int, Array],
    workers: Workers,
    dtype: npt.DTypeLike,
    tick: Callable[[float], None],
) -> Iterator[tuple[Address, float]]:
    """Mean KL over the kept tokens for every state, the head loaded piece by piece."""
    config = model.config
    tokens = next(iter(clean.values())).shape[1]
    step = max(1, HEAD_BYTES // (tokens * np.dtype(dtype).itemsize))
    running = {a: RunningDivergence.start(tokens) for a in states}

    def add(a: Address, weights: Weights, logits: Array) -> RunningDivergence:
        return running[a].add(logits, head(states[a].h, weights, config)[0])

    for start in range(0, config.vocab_size, step):
        weights = model.head(dtype, slice(start, start + step))
        for sequence, h in clean.items():
            (logits,) = workers.run([partial(head, h, weights, config)])
            mine = [a for a in states if a.sequence == sequence]
            sums = workers.run([partial(add, a, weights, logits[0]) for a in mine])
            running |= zip(mine, sums, strict=True)
        pieces = -(-config.vocab_size // step)
        tick(head_cost(config) * (len(states) + len(clean)) / pieces)
    for a, state in states.items():
        yield a, float(known_mean(running[a].value[state.kept]))
