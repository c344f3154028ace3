"""What all mixers of tokens tell about themselves; each is in a file of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

Matrices = dict[str, tuple[int, int]]  # [out, in]


@dataclass(frozen=True)
class WeightShapes:
    """The shapes of a mixer's weights, by our names.

    `linears` are pruned, in this order, and `matrices` never; `norms` have a width by their role.
    """

    linears: Matrices
    matrices: Matrices = field(default_factory=dict)
    norms: dict[str, int] = field(default_factory=dict)
    arrays: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixer:
    """What all mixers tell: their name, their trace points in order, and their weights.

    This one is that of a block which is an MLP alone: it has none of them.

    `reads` maps linears that attention does not have to the trace point that they read. A mixer
    `in_a_row` takes sequences of equal length one after another; one that `attends` has a mask and
    positions. `not_recorded` says why it cannot become part of a graph.
    """

    name: ClassVar[str] = "no_mixer"
    points: ClassVar[tuple[str, ...]] = ()
    reads: ClassVar[Mapping[str, str]] = {}
    in_a_row: ClassVar[bool] = True
    attends: ClassVar[bool] = False
    not_recorded: ClassVar[str] = ""

    def runs(self, fused: tuple[str, ...]) -> int:
        """How many runs of rows weights are cut into that alternate in one tensor of a file."""
        return 1

    @property
    def kept_size(self) -> int:
        """Numbers of a token that later blocks read of it."""
        return 0

    def shapes(self, width: int) -> WeightShapes:
        """The shapes of its weights, in a stream of D channels."""
        return WeightShapes({})


NO_MIXER = Mixer()
