"""The part of a stored tensor that one weight is: stacked, fused, transposed or interleaved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from refimpl.model.ops import Array


@dataclass(frozen=True)
class Layout:
    """The rows of a stored tensor that belong to one weight.

    Args:
        rows: Number of rows of each weight that shares the tensor, in the file's order.
        index: Which of these weights this is.
        groups: Number of runs that each weight is cut into; the weights alternate run by run.
        transposed: Whether the file holds [in, out].
        stack: Number of experts whose weights are stacked in the tensor; 0 if they are not.
        expert: Which expert's weight this is.
    """

    rows: tuple[int, ...] = ()
    index: int = 0
    groups: int = 1
    transposed: bool = False
    stack: int = 0
    expert: int = 0

    @property
    def alone(self) -> bool:
        """Whether the weight is the whole tensor, rows first."""
        return not self.transposed and not self.stack and len(self.rows) < 2


WHOLE = Layout()  # a tensor of its own, rows first


def cut(stored: Array, layout: Layout) -> Array:
    """Cut one weight out of the stored tensor.

    Args:
        stored: The file's tensor, [rows, in], [in, rows] or (a bias) [rows]; of a stack, one such
            tensor per expert.
        layout: The rows of the weight.

    Returns:
        The weight [out, in] or bias [out]; a view if the layout allows one.

    Source: transformers: Phi-3 and GPT-2 concatenate the weights; GPT-NeoX puts each head's q, k
    and v together, Falcon each key-value head's k and v behind its queries; GPT-2's Conv1D holds
    [in, out].

    Example:
        >>> fused = np.arange(8).reshape(8, 1)   # two heads of (q, k), two rows each
        >>> cut(fused, Layout(rows=(4, 4), index=1, groups=2)).ravel().tolist()
        [2, 3, 6, 7]
    """
    one = stored[layout.expert] if layout.stack else stored
    whole = one.T if layout.transposed else one
    if len(layout.rows) < 2:
        return whole
    start, stop = (sum(layout.rows[:i]) // layout.groups for i in (layout.index, layout.index + 1))
    if layout.groups == 1:
        return whole[start:stop]
    groups = whole.reshape(layout.groups, -1, *whole.shape[1:])
    return groups[:, start:stop].reshape(layout.rows[layout.index], *whole.shape[1:])


def join(parts: Sequence[Array], layout: Layout) -> Array:
    """Undo `cut`: join all weights that share a tensor.

    Args:
        parts: The weights [out, in] or biases [out], in the file's order; of a stack, those of one
            expert after another.
        layout: The layout of any of them.

    Returns:
        The file's tensor, contiguous, [rows, in], [in, rows] or [rows], or a stack of those.

    Example:
        >>> parts = [np.array([[0], [1], [4], [5]]), np.array([[2], [3], [6], [7]])]
        >>> join(parts, Layout(rows=(4, 4), groups=2)).ravel().tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]
    """
    if layout.stack:
        each, one = max(1, len(layout.rows)), replace(layout, stack=0)
        return np.stack([join(parts[i : i + each], one) for i in range(0, len(parts), each)])
    if layout.groups > 1 and len(parts) > 1:
        runs = [part.reshape(layout.groups, -1, *part.shape[1:]) for part in parts]
        whole = np.concatenate(runs, axis=1).reshape(sum(layout.rows), *parts[0].shape[1:])
    else:
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return np.ascontiguousarray(whole.T if layout.transposed else whole)
