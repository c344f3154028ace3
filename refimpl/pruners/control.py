"""The control: the requested number of zeros, at random places."""

import numpy as np

from refimpl.pruners.checks import Bools
from refimpl.pruners.pattern import Pattern, pattern_keep
from refimpl.pruners.scores import magnitude_keep


def control_generator(seed: int, block: int, linear: int) -> np.random.Generator:
    """Return the random numbers of one linear, which do not depend on the other linears.

    Generator(Philox(SeedSequence(seed, spawn_key=(block, linear))))

    Args:
        seed: The seed of the whole run, at least 0.
        block: The block, from 0.
        linear: The linear within its block, from 0.

    Returns:
        A fresh generator.

    Example:
        >>> float(control_generator(0, 1, 2).random()) == float(control_generator(0, 1, 2).random())
        True
    """
    key = np.random.SeedSequence(seed, spawn_key=(block, linear))
    return np.random.Generator(np.random.Philox(key))


def random_keep(
    shape: tuple[int, ...], target: int | Pattern, generator: np.random.Generator
) -> Bools:
    """Decide at random which weights stay: each gets a uniform score, and the lowest go.

    Args:
        shape: [R, C] of the linear.
        target: Weights to prune of the whole linear, or n of every m in each row.
        generator: Random numbers; R C of them are drawn.

    Returns:
        keep, [R, C], True = stays; exactly the requested number are False.

    Raises:
        RefimplError: The count does not fit the shape, or m does not divide C.

    Example:
        >>> keep = random_keep((3, 4), 5, control_generator(0, block=0, linear=0))
        >>> int((~keep).sum())
        5
    """
    score = generator.random(shape)
    if isinstance(target, Pattern):
        return pattern_keep(score, target)
    return magnitude_keep(score, target)
