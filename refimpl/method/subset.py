"""Which blocks each sequence perturbs, if it does not perturb all of them."""

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError


def chosen_blocks(
    sequences: int, draws: int, blocks: int, subset: int | None, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose K of the L blocks for each sequence and draw, at random and evenly spread.

    This is systematic sampling over the depth. The blocks are laid out in order, each as often as
    another or once more, and dealt like cards to the pairs of a sequence and a draw, the sequences
    in a random order. Every pair gets one block of each K-th of the depth, none twice. The choice
    does not depend on the data, so the mean over the sequences of a block is unbiased.

    Args:
        sequences: N.
        draws: Draws of noise per sequence, R.
        blocks: L.
        subset: K; all blocks if None.
        seed: Of the choice.

    Returns:
        Whether a block is perturbed, [N, R, L].

    Raises:
        RefimplError: K is more than L, or too small for every block to be perturbed once.

    Example:
        >>> chosen = chosen_blocks(sequences=4, draws=1, blocks=6, subset=3, seed=0)
        >>> chosen.sum(axis=-1).ravel().tolist(), chosen.sum(axis=(0, 1)).tolist()
        ([3, 3, 3, 3], [2, 2, 2, 2, 2, 2])
    """
    if subset is None:
        return np.ones((sequences, draws, blocks), np.bool_)
    pairs = sequences * draws
    if not 1 <= subset <= blocks:
        raise RefimplError(
            f"a subset of {subset} blocks of {blocks}",
            f"1 to {blocks} blocks",
            f"use --subset {blocks} or less, or omit it",
        )
    if pairs * subset < blocks:
        raise RefimplError(
            f"a subset of {subset} blocks for each of {pairs} sequences and draws",
            f"enough to perturb each of the {blocks} blocks: {-(-blocks // subset)} sequences "
            f"and draws, or a subset of {-(-blocks // pairs)}",
            f"use --subset {-(-blocks // pairs)}, or more --samples or --draws",
        )
    key = np.random.SeedSequence(seed, spawn_key=(0,))
    generator = np.random.Generator(np.random.Philox(key))
    cards = np.arange(pairs * subset)
    block = (cards * blocks + generator.integers(blocks)) // len(cards)
    # Cards in a row go to different sequences until each has one, and then to other draws.
    order = generator.permutation(sequences)
    draw = generator.permuted(np.tile(np.arange(draws), (sequences, 1)), axis=1)
    sequence, nth = order[cards % sequences], cards % pairs // sequences
    chosen = np.zeros((sequences, draws, blocks), np.bool_)
    chosen[sequence, draw[sequence, nth], block] = True
    return chosen
