"""What a computation in some dtype is fed of a case, step by step."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from refimpl.allocation.scores import Signals
from refimpl.model.forward import Place, embed, places
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.oracle.rounding import Rounded

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Fed:
    """A case, and what a computation in some dtype is fed of it.

    Args:
        case: The case.
        model: Its model, which may round.
        dtype: Of the computation, float32 or float64.
        rounded: How its numbers are rounded further; None for not at all.
    """

    case: Case
    model: Model
    dtype: npt.DTypeLike
    rounded: type[Rounded] | None

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """Token ids, [N, S]."""
        return self.case.inputs["token_ids"]

    @cached_property
    def places(self) -> list[Place]:
        """Where the tokens stand, as each block sees it."""
        found = places(np.arange(self.ids.shape[1]), self.model.config, self.dtype)
        return [found[kind] for kind in self.model.config.blocks]

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Weights of each linear of a block, [linears]."""
        shapes = self.model.config.linear_shapes.values()
        return np.array([out * width for out, width in shapes], np.int64)

    @cached_property
    def options(self) -> tuple[float, str, str, str]:
        """OWL's m, DLP's statistic, AlphaPruning's fit and xmin."""
        asked = {x: self.case.recipe.request(x).options for x in ("owl", "dlp", "alphapruning")}
        alpha = asked["alphapruning"]
        m, statistic = float(asked["owl"]["m"]), str(asked["dlp"]["statistic"])
        return m, statistic, str(alpha["fit"]), str(alpha["xmin"])

    def signals(self, others: Mapping[str, Array]) -> Signals:
        """The case's signals, some of them others, by the names of their steps."""
        m, statistic, fit, xmin = self.options
        names = ("owl.signal", "dlp.signal", "alphapruning.signal")
        known = {x: self.number(x) for x in names if x in self.case.expected} | dict(others)
        owl, dlp, alpha = (known.get(x) for x in names)
        assert owl is not None
        assert dlp is not None
        return Signals(m, owl, statistic, dlp, fit, xmin, alpha)

    def state(self, step: str) -> Array:
        """What the model computes with: rounded once to the dtype."""
        value = self.case.expected[step]
        return value.astype(self.dtype) if self.rounded is None else self.rounded.of(value)

    def number(self, step: str) -> Array:
        """What the method has in float64 in every dtype; only float64 itself is rounded further."""
        value = self.case.expected[step]
        if self.rounded is None or self.rounded.held != np.float64:
            return value
        return np.asarray(self.rounded.of(value))

    def keep(self, step: str, shape: tuple[int, int]) -> Bools:
        """The case's decision, [out, in]."""
        bits = np.unpackbits(self.case.expected[step], axis=1, count=shape[1])
        return bits.astype(np.bool_)

    def embedded(self) -> Array:
        """The states before the first block, [N, S, D], from token ids."""
        positions = np.arange(self.ids.shape[1])
        return embed(self.ids, positions, self.model.embedding(), self.model.config, self.dtype)
