"""The values of a case that each step is computed from, in some dtype."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import base_allocation
from refimpl.method.correction import clipped_log, corrected
from refimpl.method.projection import project
from refimpl.model.forward import Place, embed, places
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.judging.pruner_scores import Keep, unpacked
from refimpl.oracle.rounding import RoundedArray


@dataclass(frozen=True, eq=False)
class StepInputs:
    """The values of a case as a computation in some dtype reads them.

    Args:
        dtype: Of the computation, float32 or float64.
        rounded: How its numbers are rounded further; None for not at all.
    """

    case: Case
    dtype: npt.DTypeLike = np.float64
    rounded: type[RoundedArray] | None = None

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Token ids, [N, S]."""
        return self.case.inputs["token_ids"]

    @cached_property
    def places(self) -> list[Place]:
        """The tokens' place, as each block sees it."""
        config = self.case.model.config
        by_kind = places(np.arange(self.ids.shape[1]), config, self.dtype)
        return [by_kind[kind] for kind in config.blocks]

    @cached_property
    def embedded(self) -> Array:
        """The states before the first block, [N, S, D]."""
        model, positions = self.case.model, np.arange(self.ids.shape[1])
        return embed(self.ids, positions, model.embedding(), model.config, self.dtype)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Weights of each linear of a block, [linears]."""
        shapes = self.case.model.config.linear_shapes.values()
        return np.array([out * width for out, width in shapes], np.int64)

    def base(self, name: str, others: Mapping[str, Array]) -> Array:
        """A base allocation [L] of the case's signals, or others, before it is projected."""
        config, recipe = self.case.model.config, self.case.recipe
        signals = {x: self.number(x) for x in self.case.expected if x.endswith(".signal")}
        every, names = recipe.signals(signals | dict(others)), tuple(config.linear_shapes)
        return base_allocation(every, recipe.request(name), config.num_blocks, names, self.sizes)

    def projected(self, base: Array) -> Array:
        """A base allocation [L] on the recipe's budget."""
        return project(base, np.full(len(base), self.sizes.sum()), self.case.recipe.sparsity)

    def corrected(self, base: Array, coefficients: Array) -> Array:
        """A base allocation [L], corrected by absorption coefficients [L]."""
        recipe, blocks = self.case.recipe, len(base)
        return corrected(
            base, clipped_log(coefficients), np.arange(blocks), np.full(blocks, self.sizes.sum()),
            recipe.sparsity, recipe.strength, recipe.max_correction,
        )  # fmt: skip

    def state(self, step: str) -> Array:
        """A value that the model computes with: rounded once to the dtype."""
        value = self.case.expected[step]
        return value.astype(self.dtype) if self.rounded is None else self.rounded.of(value)

    def number(self, step: str) -> Array:
        """A value that the method has in float64 in every dtype; only float64 itself is rounded."""
        value = self.case.expected[step]
        if self.rounded is None or self.rounded.held != np.float64:
            return value
        return np.asarray(self.rounded.of(value))

    def keep(self, step: str, shape: tuple[int, int]) -> Keep:
        """The case's decision, [out, in]."""
        return unpacked(self.case.expected[step], shape[1])
