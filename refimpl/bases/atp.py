"""ATP: a straight line over depth."""

from typing import Annotated

import numpy as np
from msgspec import Meta

from refimpl.arguments import Floats, Fraction, checked
from refimpl.bases.base import Base, Option
from refimpl.bases.uniform import uniform
from refimpl.errors import RefimplError

Slope = Annotated[float, Meta(ge=-1, le=1)]


@checked
def atp(num_blocks: int, sparsity: Fraction, beta: Slope) -> Floats:
    """Return ATP's allocation: a straight line over depth.

    s_i = S - beta (L - 1) / 2 + i beta,  i = 0..L-1

    Args:
        num_blocks: Number of blocks L.
        sparsity: Target S, in [0, 1].
        beta: Step per block, in fractions of the block; negative to prune early blocks more.

    Returns:
        Fraction pruned per block, [L].

    Raises:
        RefimplError: A number is out of range, or a sparsity outside [0, 1].

    Example:
        >>> atp(3, 0.5, beta=0.1).round(4)
        array([0.4, 0.5, 0.6])
    """
    flat = uniform(num_blocks, sparsity)
    line = flat - beta * (num_blocks - 1) / 2 + np.arange(num_blocks) * beta
    if line.min() < 0 or line.max() > 1:
        raise RefimplError(
            f"beta {beta} gives sparsities from {line.min():.4f} to {line.max():.4f}",
            "every block in [0, 1]",
            "use a beta nearer to 0",
        )
    return line


ATP = Base(
    "atp",
    "ATP",
    "arXiv:2502.14770",
    lambda asked: atp(len(asked.linears), asked.sparsity, float(asked.options["beta"])),
    options={"beta": Option(None, "Step of the sparsity per block.", Slope)},
    formulas=(atp,),
    deviations="its script picks beta on the test text; here the caller does",
)
