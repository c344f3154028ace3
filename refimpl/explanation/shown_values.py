"""The values that an explanation shows: the numbers of `score`, each when it is first asked for."""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import Allocation, allocate
from refimpl.allocation.request import Request
from refimpl.allocation.scores import Scores
from refimpl.errors import printable
from refimpl.method.perturbation import Noise, Perturbation, Probes, kept_tokens
from refimpl.model.config import Config
from refimpl.model.forward import Place, Weights, block, head
from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.model.statistics import add_sums, input_of, second_moments, sum_of_squares
from refimpl.model.stream import Stream
from refimpl.model.token_ids import checked_ids
from refimpl.pruners.wanda import wanda_keep, wanda_score
from refimpl.running.settings import Settings
from refimpl.running.threads import Workers
from refimpl.scoring.measurements import Address
from refimpl.scoring.perturbed_state import Clean, PerturbedState, Stack, with_noise
from refimpl.scoring.score import probed_blocks, score
from refimpl.tokens import Tokens
from refimpl.tokens.tokenizer import read_tokenizer

ROWS = 8192  # of the head held at a time


@dataclass
class Values:
    """Every value that a step may show; `index` is the block that is shown."""

    model: Model
    tokens: Tokens
    index: int
    plan: Perturbation
    request: Request
    settings: Settings

    @property
    def config(self) -> Config:
        """The model's facts."""
        return self.model.config

    @cached_property
    def ids(self) -> Array:
        """Token ids, [N, S]."""
        return checked_ids(self.tokens.ids, self.config)

    def strings(self, ids: Array) -> npt.NDArray[np.str_] | None:
        """The tokens of some ids as tokenizer.json writes them; None without a tokenizer."""
        path = self.model.tokenizer_json
        if not path.exists() or find_spec("tokenizers") is None:
            return None
        tokenizer = read_tokenizer(path)
        numbers, places = np.unique(ids, return_inverse=True)
        found = [tokenizer.id_to_token(i) or "" for i in numbers.tolist()]
        return np.array([*map(printable, found)])[places].reshape(ids.shape)

    @property
    def place(self) -> Place:
        """Bias and rotary tables of the block."""
        return self._stream(self.index).place(self.ids.shape[1])

    @cached_property
    def weights(self) -> BlockWeights:
        """Weights of the block."""
        return self.model.block(self.index, self.settings.dtype)

    @cached_property
    def embedded(self) -> list[Array]:
        """h_0 of every sequence, [1, S, D]."""
        return list(
            Stream(self.model, dict(enumerate(self.ids)), self.settings.dtype).states.values()
        )

    @cached_property
    def entering(self) -> list[Array]:
        """The residual stream of every sequence before the block, [1, S, D]."""
        states = self.embedded
        for i in range(self.index):
            states = [*map(self._through(i), states)]
        return states

    @cached_property
    def leaving(self) -> list[Array]:
        """The residual stream of every sequence after the block, [1, S, D]."""
        return [h for h, _ in self._read]

    @cached_property
    def moments(self) -> dict[str, Array]:
        """Wanda's statistic of the block's linears, dense model, all tokens, [in]."""
        total: dict[str, Array] = {}
        for _, sums in self._read:
            add_sums(total, sums)
        return second_moments(total, len(self.ids), self.config.linears[self.index])

    @cached_property
    def points(self) -> dict[str, Array]:
        """Every trace point of the block on the first sequence."""
        points: dict[str, Array] = {}

        def observe(name: str, value: Array) -> Array:
            points[name] = value
            return value

        place = replace(self.place, observe=observe)
        block(self.entering[0], self.weights, place, self.config)
        return points

    @cached_property
    def kept(self) -> list[npt.NDArray[np.bool_]]:
        """Which tokens of each sequence take part, [S]."""
        return [kept_tokens(h[0], self.plan.sink) for h in self.leaving]

    @cached_property
    def followed(self) -> tuple[list[list[PerturbedState]], Array]:
        """Perturbed states at the end, per sequence and draw, and the first clean one there."""
        clean, draws = self.leaving, range(self.plan.draws)
        stacks = [
            [self.started(sequence, draw) for draw in draws] for sequence in range(len(clean))
        ]
        for i in range(self.index + 1, self.config.num_blocks):
            through = self._through(i)
            clean = [through(h) for h in clean]
            for of_sequence, h in zip(stacks, clean, strict=True):
                for stack in of_sequence:
                    stack.move(i, through, self._perturb, _computed(h))
        return [[x.states[0] for x in of_sequence] for of_sequence in stacks], clean[0]

    @cached_property
    def logits(self) -> Array:
        """Scores of what follows the first sequence, [V]; the head is read in pieces."""
        last, size = self.followed[1][:, -1:], self.config.vocab_size
        pieces = (
            self.model.head(self.settings.dtype, slice(i, i + ROWS)) for i in range(0, size, ROWS)
        )
        return np.concatenate([head(last, rows, self.config)[0, 0] for rows in pieces])

    @cached_property
    def scores(self) -> Scores:
        """The result of `score`."""
        return score(self.model, self.tokens, self.plan, self.request, self.settings)

    @cached_property
    def allocation(self) -> Allocation:
        """The result of `allocate`."""
        return allocate(self.scores, self.request)

    @property
    def linear(self) -> str:
        """The linear whose weights are looked at: the block's first that reads a token."""
        linears = self.config.linears[self.index]
        return next(name for name in linears if input_of(name) in self.points)

    @property
    def weight(self) -> Array:
        """Its weights, [out, in]."""
        return self.weights[f"{self.linear}.weight"]

    @cached_property
    def linear_score(self) -> Array:
        """Wanda's score of its weights, [out, in]."""
        return wanda_score(self.weight, self.moments[self.linear])

    @cached_property
    def keep(self) -> npt.NDArray[np.bool_]:
        """Which of its weights stay under the allocation, [out, in]."""
        position = [*self.config.linears[self.index]].index(self.linear)
        pruned = self.allocation.linear_pruned[self.index, position]
        return wanda_keep(self.linear_score, int(pruned))

    @cached_property
    def _read(self) -> list[tuple[Array, dict[str, Array]]]:
        """Every sequence after the block, and the squares of what its linears read."""
        return [
            self._stream(self.index).through_with_sums(h, self.weights, sum_of_squares)
            for h in self.entering
        ]

    @cached_property
    def _pruned_weights(self) -> Weights:
        """The block's weights after the pruning that is its perturbation."""
        at, plan, moments = (
            self.scores.pruned_at,
            self.plan,
            (self.moments,) * self.config.num_blocks,
        )
        assert at is not None  # as there are
        assert isinstance(plan, Probes)
        alone = replace(plan, probe_delta=None)
        prune = probed_blocks(self.config, at.linear_pruned, alone, moments)
        with Workers(self.settings.threads) as workers:
            if prune.pruner.record.needs == "products":
                ids, every = dict(enumerate(self.ids)), dict(enumerate(self.entering))
                clean = Stream(self.model, ids, self.settings.dtype, every, self.index)
                prune = prune.summed(clean, self.weights, workers)
            return prune(self.index, 0, self.weights, workers)

    def _through(self, index: int) -> Callable[[Array], Array]:
        """One block of the model, as a function of the stream."""
        weights = self.model.block(index, self.settings.dtype)
        return partial(self._stream(index).through, weights=weights)

    def _stream(self, index: int) -> Stream:
        """The sequences before one block; its states are handed in."""
        return Stream(self.model, dict(enumerate(self.ids)), self.settings.dtype, {}, index)

    def started(self, sequence: int, draw: int) -> Stack:
        """One state after the block, perturbed by the plan."""
        stack = Stack((Address(sequence, draw, 0, self.index),), self.plan)
        stack.move(self.index, lambda h: h, self._perturb, _computed(self.leaving[sequence]))
        return stack

    def _perturb(self, a: Address) -> Array:
        """The residual stream after the block that is perturbed by the plan, [1, S, D]."""
        if isinstance(self.plan, Noise):
            return with_noise(self.leaving[a.sequence], a, self.plan)
        return self._stream(self.index).through(self.entering[a.sequence], self._pruned_weights)


def _computed(h: Array) -> Clean:
    """A clean state as `Stack` takes it."""
    future: Clean = Future()
    future.set_result((h, {}))
    return future
