"""What a step is computed from: the values of the steps before it, or those of a case."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import base_allocation, units_of
from refimpl.method import perturbation
from refimpl.method.correction import corrected
from refimpl.method.projection import project
from refimpl.model.forward import Place, embed, head, places
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.judging.pruner_scores import Keep, unpacked
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import RoundedArray


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The values that steps are computed from.

    A chain reads what it has computed itself. Step by step, the values of a case are read: states
    are rounded once to the dtype, numbers that the method has in float64 are not.

    Args:
        dtype: Of the computation, float32 or float64.
        given: Values by step, those of a case; None for a chain.
        noises: As the inputs of a case; drawn by the recipe's seed if None.
        rounded: How numbers are rounded further; None for not at all.
        choices: Steps `blocks.{l}.router.keep` that the forward goes on with.
        values: What has been computed, by name.
        squares: By block, the sums over what the dense linears read.
        perplexities: By pruner.
    """

    model: Model
    recipe: Recipe
    ids: npt.NDArray[np.int64]
    dtype: npt.DTypeLike = np.float64
    given: Mapping[str, Array] | None = None
    noises: Mapping[str, Array] | None = None
    rounded: type[RoundedArray] | None = None
    choices: Mapping[str, Array] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    squares: list[dict[str, Array]] = field(default_factory=list)
    perplexities: dict[str, Array] = field(default_factory=dict)

    @cached_property
    def places(self) -> list[Place]:
        """The tokens' place, as each block sees it."""
        config = self.model.config
        by_kind = places(np.arange(self.ids.shape[1]), config, self.dtype)
        return [by_kind[kind] for kind in config.blocks]

    @cached_property
    def embedded(self) -> Array:
        """The states before the first block, [N, S, D]."""
        positions, config = np.arange(self.ids.shape[1]), self.model.config
        return embed(self.ids, positions, self.model.embedding(), config, self.dtype)

    def entering(self, block: int) -> Array:
        """The states before a block, [N, S, D]."""
        if self.given is not None:
            return self.state(f"blocks.{block}.resid_pre")
        return self.leaving(block - 1) if block else self.values["embed"]

    def leaving(self, block: int) -> Array:
        """The states after a block, [N, S, D]; of the last one, if -1."""
        return self.state(f"blocks.{block % self.model.config.num_blocks}.resid_post")

    def logits(self, x: Array) -> Array:
        """The logits [N, S, V] of the states after the last block."""
        return head(x, self.model.head(self.dtype), self.model.config)

    def value(self, step: str) -> Array:
        """A value as it is."""
        return self.values[step] if self.given is None else self.given[step]

    def state(self, step: str) -> Array:
        """A value that the model computes with."""
        value = self.value(step)
        if self.given is None:
            return value
        return value.astype(self.dtype) if self.rounded is None else self.rounded.of(value)

    def number(self, step: str) -> Array:
        """A value that the method has in float64 in every dtype; only float64 itself is rounded."""
        value = self.value(step)
        if self.given is None or self.rounded is None or self.rounded.held != np.float64:
            return value
        return np.asarray(self.rounded.of(value))

    def keep(self, step: str, shape: tuple[int, ...]) -> Keep:
        """A decision, [out, in], or the choice of a router, [N, S, experts]."""
        return unpacked(self.value(step), shape[-1])

    def choice(self, step: str, value: Array) -> Array:
        """What the forward goes on with at a trace point: another choice, if one is given."""
        return unpacked(self.choices[step], value.shape[-1]) if step in self.choices else value

    def noise(self, block: int, sequence: int, draw: int) -> Array:
        """The noise after a block, [S, D]."""
        if self.noises is not None:
            return self.noises[f"noise.{draw}" if draw else "noise"][block][sequence]
        shape = self.ids.shape[1], self.model.config.hidden_size
        return perturbation.noise(self.recipe.seed, sequence, block, draw, shape)

    @cached_property
    def signals(self) -> dict[str, Array]:
        """The signals by step."""
        every = self.values if self.given is None else self.given
        return {x: self.number(x) for x in every if x.endswith(".signal")}

    def base(self, name: str, others: Mapping[str, Array]) -> Array:
        """A base [L] or [L, linears] of the signals, or others, before it is projected."""
        every, request = self.recipe.signals(self.signals | dict(others), name), self.recipe.request
        return base_allocation(every, request(name), self.model.config.linears)

    def projected(self, base: Array) -> Array:
        """A base allocation, [L] or [L, linears], on the recipe's budget."""
        sizes, exists = units_of(base, self.model.config.linear_sizes)
        result = np.zeros(base.shape)
        result[exists] = project(base[exists], sizes, self.recipe.sparsity)
        return result

    def per_block(self, allocation: Array) -> Array:
        """An allocation, [L] or [L, linears], as the share of each block that goes, [L]."""
        if allocation.ndim == 1:
            return allocation
        sizes = self.model.config.linear_sizes
        return np.vecdot(allocation, sizes / sizes.sum(axis=1, keepdims=True))

    def corrected(self, base: Array, u: Array) -> Array:
        """A base allocation, [L] or [L, linears], corrected by clipped logarithms [L]."""
        recipe = self.recipe
        sizes, exists = units_of(base, self.model.config.linear_sizes)
        result = np.zeros(base.shape)
        result[exists] = corrected(
            base[exists], u, np.nonzero(exists)[0], sizes,
            recipe.sparsity, recipe.strength, recipe.max_correction,
        )  # fmt: skip
        return result

    def errors(self, correct: str) -> Array:
        """The errors that a correction by arrival or divergence is made from, [L]."""
        if correct == "divergence":
            return self.number("pruned.divergence")
        blocks = range(self.model.config.num_blocks)
        return np.array([self.number(f"pruned.{i}.drift")[-1] for i in blocks])
