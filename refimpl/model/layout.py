"""The part of a stored tensor that one weight is: stacked, fused, transposed or interleaved."""

from dataclasses import dataclass

from refimpl.model.ops import Array


@dataclass(frozen=True)
class Layout:
    """The rows of a stored tensor that belong to one weight."""

    # Number of rows of each weight that shares the tensor, in the file's order
    rows: tuple[int, ...] = ()
    index: int = 0  # Which of these weights this is
    groups: int = 1  # Number of runs that each weight is cut into; the weights alternate run by run
    transposed: bool = False  # Whether the file holds [in, out]
    stack: int = 0  # Number of experts whose weights are stacked in the tensor; 0 if they are not
    expert: int = 0  # Which expert's weight this is

    @property
    def alone(self) -> bool:
        """Whether the weight is the whole tensor, rows first."""
        return not self.transposed and not self.stack and len(self.rows) < 2

    def weight_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one weight, [out, in] or [out], in a stored tensor of this shape."""
        one = stored[1:] if self.stack else stored
        every = (one[::-1] if self.transposed else one) or (1,)
        return (self.rows[self.index], *every[1:]) if len(self.rows) > 1 else every


OWN_TENSOR = Layout()  # a tensor of its own, rows first


def extract(stored: Array, layout: Layout) -> Array:
    """Cut one weight [out, in], or bias [out], out of the stored tensor; a view if possible.

    The stored tensor is [rows, in], [in, rows] or (a bias) [rows]; of a stack, one such per expert.

    Source: transformers: Phi-3 and GPT-2 concatenate the weights; GPT-NeoX puts each head's q, k
    and v together, Falcon each key-value head's k and v behind its queries; GPT-2's Conv1D holds
    [in, out].

    Example:
        >>> import numpy as np
        >>> fused = np.arange(8).reshape(8, 1)   # two heads of (q, k), two rows each
        >>> extract(fused, Layout(rows=(4, 4), index=1, groups=2)).ravel().tolist()
        [2, 3, 6, 7]
    """
    runs = _runs(stored, layout)
    return runs if layout.groups == 1 else runs.reshape(-1, *runs.shape[2:])


def paste(stored: Array, weight: Array, layout: Layout) -> None:
    """Put one weight into the stored tensor, in place: the opposite of `extract`.

    Example:
        >>> import numpy as np
        >>> fused = np.zeros((8, 1), int)
        >>> paste(fused, np.array([[1], [2], [3], [4]]), Layout(rows=(4, 4), index=1, groups=2))
        >>> fused.ravel().tolist()
        [0, 0, 1, 2, 0, 0, 3, 4]
    """
    runs = _runs(stored, layout)
    runs[...] = weight.reshape(runs.shape)


def _runs(stored: Array, layout: Layout) -> Array:
    """A view of a weight's runs of rows: [groups, rows, in], or [rows, in] of one group."""
    one = stored[layout.expert] if layout.stack else stored
    whole = one.T if layout.transposed else one
    one_group = layout.groups == 1
    runs = whole if one_group else whole.reshape(layout.groups, -1, *whole.shape[1:])
    if len(layout.rows) < 2:
        return runs
    start, stop = (sum(layout.rows[:i]) // layout.groups for i in (layout.index, layout.index + 1))
    return runs[start:stop] if one_group else runs[:, start:stop]
