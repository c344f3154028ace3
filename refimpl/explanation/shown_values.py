"""The values that an explanation shows: the numbers of `score`, each when it is first asked for."""

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import Allocation, allocate
from refimpl.allocation.request import Perturbation, Probes, Request
from refimpl.allocation.scores import Scores
from refimpl.errors import printable
from refimpl.loading.samples import Tokens
from refimpl.loading.text import read_tokenizer
from refimpl.method.perturbation import included_tokens
from refimpl.model.config import Config
from refimpl.model.forward import block, final_state, logits
from refimpl.model.mixers.parts import Place
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.model.state import State, checked_ids
from refimpl.model.stream import Stream, add_sums, input_of, second_moments
from refimpl.pruners.wanda import wanda_keep, wanda_score
from refimpl.running.settings import Settings
from refimpl.running.threads import Workers
from refimpl.scoring.measurements import Address, Squares
from refimpl.scoring.score import probed_blocks, score
from refimpl.scoring.state_group import PerturbedState, Stack, StateGroup

_ROWS = 8192  # of the head held at a time


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

    @property
    def attention(self) -> Attention:
        """The sizes of the block's attention."""
        mixer = self.config.mixer(self.index)
        assert isinstance(mixer, Attention)  # only then steps ask for it
        return mixer

    def strings(self, ids: Array) -> npt.NDArray[np.str_] | None:
        """The tokens of some ids as tokenizer.json writes them; None without a tokenizer."""
        path = self.model.tokenizer_json
        if not path.exists() or find_spec("tokenizers") is None:
            return None
        tokenizer = read_tokenizer(path)
        found = [printable(tokenizer.id_to_token(i) or "") for i in ids.flat]
        return np.array(found).reshape(ids.shape)

    @property
    def place(self) -> Place:
        """Bias and rotary tables of the block."""
        return self.before.place(self.ids.shape[1])

    @cached_property
    def weights(self) -> BlockWeights:
        """Weights of the block."""
        return self.model.block(self.index, self.settings.dtype)

    @cached_property
    def before(self) -> Stream:
        """All sequences before the block."""
        return self.after(self.index)[0]

    @cached_property
    def leaving(self) -> list[State]:
        """Every sequence after the block."""
        return [*self._read[0].states.values()]

    @cached_property
    def moments(self) -> dict[str, Array]:
        """Wanda's statistic of the block's linears, dense model, all tokens, [in]."""
        total: dict[str, Array] = {}
        for sums in self._read[2].values():
            add_sums(total, sums[self.index])
        return second_moments(total, len(self.ids), self.config.linears[self.index])

    @cached_property
    def points(self) -> dict[str, Array]:
        """Every trace point of the block on the first sequence."""
        points: dict[str, Array] = {}

        def observe(name: str, value: Array) -> Array:
            """Note what passes a point, and hand it on."""
            points[name] = value
            return value

        place = replace(self.place, observe=observe)
        block(self.before.states[0], self.weights, place, self.config)
        return points

    @cached_property
    def included(self) -> list[npt.NDArray[np.bool_]]:
        """Which tokens of each sequence take part, [S]."""
        return [included_tokens(x.stream[0], self.plan.sink) for x in self.leaving]

    @cached_property
    def followed(self) -> tuple[list[list[PerturbedState]], State]:
        """Perturbed states at the end, per sequence and draw, and the first clean one there."""
        clean, stacks, _ = self.after(self.config.num_blocks, self.addresses)
        states = [
            [x.states[0] for x in stacks if x.sequence == n] for n in clean.states
        ]
        return states, clean.states[0]

    @cached_property
    def logits(self) -> Array:
        """Scores of what follows the first sequence, [V]; the head is read in pieces."""
        read, size = (
            partial(self.model.head, self.settings.dtype),
            self.config.vocab_size,
        )
        last = final_state(self.followed[1].stream[:, -1:], read(slice(0)), self.config)
        pieces = (read(slice(i, i + _ROWS)) for i in range(0, size, _ROWS))
        return np.concatenate(
            [logits(last, rows, self.config)[0, 0] for rows in pieces]
        )

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
    def keep(self) -> npt.NDArray[np.bool_]:
        """Which of its weights stay under the allocation, [out, in]."""
        position = [*self.config.linears[self.index]].index(self.linear)
        pruned = self.allocation.linear_pruned[self.index, position]
        return wanda_keep(
            wanda_score(self.weight, self.moments[self.linear]), int(pruned)
        )

    @cached_property
    def _read(self) -> tuple[Stream, list[Stack], dict[int, Squares]]:
        """All sequences after the block, and the squares of what linears read."""
        return self.after(self.index + 1)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The states that are perturbed in this block."""
        places = product(range(len(self.ids)), range(self.plan.draws))
        return tuple(
            Address(sequence, draw, 0, self.index) for sequence, draw in places
        )

    def after(
        self, blocks: int, states: tuple[Address, ...] = ()
    ) -> tuple[Stream, list[Stack], dict[int, Squares]]:
        """Clean and perturbed states after so many blocks, as `score` takes them there."""
        ids, prune, plan = dict(enumerate(self.ids)), None, self.plan
        if states and isinstance(plan, Probes) and (at := self.scores.pruned_at):
            moments = (self.moments,) * self.config.num_blocks
            alone = replace(plan, delta=None)
            prune = probed_blocks(self.config, at.linear_pruned, alone, moments)
        stacks = tuple((a,) for a in states)
        group = StateGroup(stacks, ids, (*ids,), plan, self.settings.dtype, prune)
        with Workers(self.settings.threads) as workers:
            return group.follow(self.model, blocks, workers)


TUTORIAL = "docs/tutorial/{}.md"  # says why a step is done


@dataclass(frozen=True)
class Figure:
    """A named value, whole, and a note on what to see in it."""

    name: str
    value: Array | float | int
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One step of the algorithm; the docstring of its first function is that of the step."""

    name: str
    page: str
    functions: tuple[Callable[..., Any], ...]
    figures: Callable[[Values], Iterable[Figure]]

    @property
    def title(self) -> str:
        """The first sentence of the first function's docstring."""
        return docstring_of(self.functions[0])[0]

    @property
    def why(self) -> str:
        """Where the reasons stand."""
        return TUTORIAL.format(self.page)


def docstring_of(function: Callable[..., Any]) -> list[str]:
    """The first sentence of a docstring, and the lines of formulas between it and its sections."""
    text = re.sub("`+", "", str(inspect.getdoc(function)))
    first, *formulas = re.split(r"\n\n[A-Z]\w+:\s", text)[0].split("\n\n")
    return [" ".join(first.split()), *"\n".join(formulas).splitlines()]


def full_name(function: Callable[..., Any]) -> str:
    """Where a function is found."""
    return f"{function.__module__}.{function.__qualname__}"
