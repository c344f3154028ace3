"""The dense model on the tokens: inputs of every linear, and the signals made from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.jobs.execution import Workers
from refimpl.method.signals import PowerLaw, alphapruning_alpha, dlp_score, esd, owl_outlier_percent
from refimpl.model.checkpoint import Model
from refimpl.model.forward import Weights, embed, places
from refimpl.model.kernels import TILED
from refimpl.model.ops import Array
from refimpl.model.statistics import add_sums, block_with_sums, second_moments, sum_of_squares
from refimpl.pruning.scores import wanda_keep, wanda_score


@dataclass(frozen=True)
class Profile:
    """Signals of the dense model.

    Args:
        moments: Wanda's statistic per block and linear, [in].
        owl_m: Multiple of the mean above which a score is an outlier.
        owl_outlier_percent: OWL's D per block, [L].
        dlp_statistic: "mean" or "median".
        dlp_score: DLP's u per block, [L].
    """

    moments: tuple[Mapping[str, Array], ...]
    owl_m: float
    owl_outlier_percent: Array
    dlp_statistic: str
    dlp_score: Array


class BlockScores(Sequence[Array]):
    """Wanda scores of a block's linears, each computed when asked for: one in memory at a time."""

    def __init__(self, weights: Weights, moments: Mapping[str, Array]) -> None:
        self._weights, self._moments, self._names = weights, moments, tuple(moments)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Array:  # type: ignore[override]
        name = self._names[index]
        return wanda_score(self._weights[f"{name}.weight"], self._moments[name])


def dense_squares(
    model: Model,
    ids: Array,
    workers: Workers,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Array], ...]:
    """Run the dense model once over all tokens and sum the squares of the linears' inputs.

    Args:
        model: The model.
        ids: Token ids, [N, S].
        workers: Threads.
        memory: Bytes for residual states.
        dtype: Of the computation; sums are float64.
        tick: Called after each block pass.

    Returns:
        Per block and trace point that is some linear's input, the sums, [in].
    """
    config, positions = model.config, np.arange(ids.shape[1])
    where = places(positions, config, dtype)
    squares: tuple[dict[str, Array], ...] = tuple({} for _ in config.blocks)
    state_bytes = ids.shape[1] * config.hidden_size * np.dtype(dtype).itemsize
    room = max(1, memory // (2 * state_bytes))
    for start in range(0, len(ids), room):
        states = [
            embed(row[None], positions, model.embedding(), config, dtype)
            for row in ids[start : start + room]
        ]
        for i, kind in enumerate(config.blocks):
            weights, place = model.block(i, dtype), where[kind]
            found = workers.run(
                [
                    partial(block_with_sums, sum_of_squares, h, weights, place, config, TILED)
                    for h in states
                ],
                tick,
            )
            states = [h for h, _ in found]
            for _, more in found:  # in order, so that the sum does not depend on the threads
                add_sums(squares[i], more)
    return squares


def profile(
    model: Model,
    squares: Sequence[Mapping[str, Array]],
    sequences: int,
    workers: Workers,
    memory: int,
    dtype: npt.DTypeLike = np.float32,
    owl_m: float = 5.0,
    dlp_statistic: str = "mean",
) -> Profile:
    """Compute the activation signals of the dense model.

    Args:
        model: The model.
        squares: Sums of squares of the linears' inputs, per block.
        sequences: Number of sequences they were summed over.
        workers: Threads.
        memory: Bytes that scores may take, about.
        dtype: In which the weights are read; scores are float64.
        owl_m: OWL's m.
        dlp_statistic: "mean" or "median".

    Returns:
        Statistics and signals.

    Source:
        OWL, DLP and Wanda (peers, confirmed by running them).
    """
    config = model.config
    moments = tuple(second_moments(sums, sequences, config) for sums in squares)
    owl, dlp = [], []
    for i in range(config.num_blocks):
        scores: Sequence[Array] = BlockScores(model.block(i, dtype), moments[i])
        if 8 * config.block_size <= memory // 4:  # else each is computed whenever it is needed
            scores = workers.run([partial(scores.__getitem__, j) for j in range(len(scores))])
        outliers, typical = workers.run(
            [
                partial(owl_outlier_percent, scores, owl_m),
                partial(dlp_score, scores, "median" if dlp_statistic == "median" else "mean"),
            ]
        )
        owl.append(outliers)
        dlp.append(typical)
    return Profile(moments, owl_m, np.array(owl), dlp_statistic, np.array(dlp))


def spectra(
    model: Model, workers: Workers, fit: str, xmin: str, tick: Callable[[], None] = lambda: None
) -> tuple[tuple[PowerLaw, ...], ...]:
    """AlphaPruning's alpha of every linear, from the spectra of the weights.

    Args:
        model: The model.
        workers: Threads.
        fit: "peak" or "mid".
        xmin: "shipped" or "intended".
        tick: Called after each linear.

    Returns:
        Per block, the alphas of its linears in the order of `config.LINEARS`.
    """

    def alpha(block: int, name: str, weight: Array) -> PowerLaw:
        try:
            return alphapruning_alpha(
                esd(weight),
                "mid" if fit == "mid" else "peak",
                "intended" if xmin == "intended" else "shipped",
            )
        except RefimplError as error:
            problem = f"blocks.{block}.{name}: {error.problem}"
            raise RefimplError(problem, error.expected, error.remedy) from error

    laws = []
    for i in range(model.config.num_blocks):
        weights = model.block(i, np.float64)
        tasks = [partial(alpha, i, n, weights[f"{n}.weight"]) for n in model.config.linear_shapes]
        laws.append(tuple(workers.run(tasks, tick)))
    return tuple(laws)


def wanda_pruned(
    weights: Weights, moments: Mapping[str, Array], counts: Mapping[str, int], workers: Workers
) -> Weights:
    """A block's weights after Wanda with exact counts per linear.

    Args:
        weights: The block's dense weights by our names.
        moments: Wanda's statistic per linear, [in].
        counts: Number of weights to prune per linear.
        workers: Threads, one linear each.

    Returns:
        The weights, the linears' pruned entries zero.
    """

    def thin(name: str) -> Array:
        weight = weights[f"{name}.weight"]
        keep = wanda_keep(wanda_score(weight, moments[name]), counts[name])
        return np.where(keep, weight, np.zeros((), weight.dtype))

    thinned = workers.run([partial(thin, name) for name in counts])
    return {**weights, **{f"{n}.weight": w for n, w in zip(counts, thinned, strict=True)}}
