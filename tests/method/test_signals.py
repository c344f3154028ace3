"""Signals against their formulas, taken word for word, and against what must hold of them."""

import tracemalloc
from collections.abc import Iterator
from math import exp, log

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refusal_of
from strategies import generators, matrices, shapes

from refimpl.bases.dlp import dlp_score
from refimpl.bases.lsa import lsa_error
from refimpl.bases.owl import owl_outlier_percent
from refimpl.errors import RefimplError
from refimpl.method.spectrum import alphapruning_alpha, esd

Floats = npt.NDArray[np.float64]

scores_of_linears = matrices(st.floats(0, 100) | st.sampled_from([0.0, 1.0]), 5, 6)
blocks = st.lists(scores_of_linears, min_size=1, max_size=4)
spectra = st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=30).map(sorted)


# Outliers and mean scores


@given(blocks, st.floats(0.5, 8))
def test_outliers_are_counted_over_the_whole_block(
    scores: list[Floats], m: float
) -> None:
    together = np.concatenate([score.ravel() for score in scores])
    threshold = m * (sum(float(score.sum()) for score in scores) / together.size)
    assume(np.abs(together - threshold).min() > 1e-9 or not together.any())
    expected = (
        100 * sum(value > threshold for value in together.tolist()) / together.size
    )
    assert owl_outlier_percent(scores, m) == expected
    assert owl_outlier_percent([together], m) == expected


def test_an_outlier_exceeds_the_threshold_strictly() -> None:
    class Scores(list[Floats]):
        def __iter__(self) -> Iterator[Floats]:
            reads.append(1)
            return super().__iter__()

    reads, scores = list[int](), Scores([np.array([[5.0, 0.0, 0.0, 0.0, 0.0]])])
    assert [owl_outlier_percent(scores, m) for m in (5.0, 4.999)] == [0.0, 20.0]
    assert len(reads) == 4  # each time for the mean, and for what exceeds it


@given(blocks)
def test_dlp_is_the_mean_or_the_median_of_the_whole_block(scores: list[Floats]) -> None:
    together = sorted(np.concatenate([score.ravel() for score in scores]).tolist())
    n = len(together)
    assert dlp_score(scores) == pytest.approx(sum(together) / n)
    assert (
        dlp_score(scores, "median") == (together[(n - 1) // 2] + together[n // 2]) / 2
    )


def test_the_median_holds_a_piece_of_the_scores_at_a_time() -> None:
    class Pieces(list[Floats]):
        def __iter__(self) -> Iterator[Floats]:
            yield from (np.random.default_rng(i).random((64, 256)) for i in range(64))

    tracemalloc.start()
    found = dlp_score(Pieces(), "median")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == float(np.median(np.stack([*Pieces()])))
    assert peak < 4_000_000  # all of them are 8.4 MB


def test_scores_of_float32_are_summed_in_float64() -> None:
    score = np.full((1, 2**12), 0.1, np.float32)
    assert dlp_score([score]) == pytest.approx(float(np.float32(0.1)), rel=1e-14)


@pytest.mark.parametrize(
    "scores", [[], [np.array([[1.0, np.nan]])], [np.array([[np.inf]])]]
)
def test_scores_must_be_there_and_finite(scores: list[Floats]) -> None:
    for signal in (owl_outlier_percent, dlp_score):
        refusal_of(signal, scores, says="scores")


# Reconstruction errors


@st.composite
def linears(draw: st.DrawFn) -> tuple[Floats, Floats]:
    """A weight [out, in], and inputs [tokens, in]."""
    rng, (rows, columns, tokens) = draw(generators), draw(shapes(4, 9, 12))
    return rng.standard_normal((rows, columns)), rng.standard_normal((tokens, columns))


def greedy(row: Floats, x: Floats, group: int) -> float:
    """The error of one row's output without half of each group: each step by trying all columns."""
    lost = np.zeros_like(row)
    for start in range(0, len(row), group):
        columns = [*range(start, min(start + group, len(row)))]
        for _ in range(len(columns) // 2):
            left = [j for j in columns if not lost[j]]
            without = {j: lost + row * (np.arange(len(row)) == j) for j in left}
            lost = without[
                min(left, key=lambda j: float(np.square(x @ without[j]).sum()))
            ]
    return float(np.square(x @ lost).sum())


@given(linears(), st.integers(1, 10))
def test_lsa_takes_what_costs_least_and_counts_what_is_lost(
    linear: tuple[Floats, Floats], group: int
) -> None:
    weight, x = linear
    tried = sum(greedy(row, x, group) for row in weight)
    assert lsa_error(weight, x.T @ x, group) == pytest.approx(
        tried, rel=1e-9, abs=1e-12
    )


def test_lsa_takes_half_of_a_last_narrow_group() -> None:
    assert lsa_error(np.ones((2, 6)), np.eye(6), group=4) == 2 * (2 + 1)
    assert (
        lsa_error(np.ones((2, 5)), np.eye(5), group=4) == 2 * 2
    )  # and nothing of one column
    assert lsa_error(np.ones((2, 4)), np.zeros((4, 4))) == 0


@pytest.mark.parametrize(
    ("weight", "outer", "group"),
    [
        (np.ones((2, 3)), np.eye(2), 2),
        (np.ones(3), np.eye(3), 2),
        (np.ones((2, 3)), np.eye(3), -1),
        (np.full((2, 3), np.inf), np.eye(3), 2),
    ],
)
def test_lsa_refuses(weight: Floats, outer: Floats, group: int) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(RefimplError):
        lsa_error(weight, outer, group)


# Spectra


@given(matrices(st.floats(-100, 100), 5, 6))
def test_esd_is_the_spectrum_of_the_gram_matrix(weight: Floats) -> None:
    spectrum = esd(weight)
    gram = (
        weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    )
    scale = max(float((weight**2).sum()), 1e-300)
    assert (np.diff(spectrum) >= 0).all()
    np.testing.assert_allclose(
        spectrum, np.linalg.eigvalsh(gram), rtol=0, atol=1e-13 * scale
    )
    np.testing.assert_allclose(spectrum, esd(weight.T), rtol=0, atol=1e-13 * scale)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_esd_says_zero_where_rounding_cannot_tell(rank: int) -> None:
    rng = np.random.default_rng(rank)
    spectrum = esd(rng.standard_normal((12, rank)) @ rng.standard_normal((rank, 20)))
    assert int((spectrum == 0).sum()) == 12 - rank
    assert not esd(np.zeros((3, 4))).any()


@pytest.mark.parametrize("weight", [[1.0, 2.0], [[1.0, float("nan")]], np.ones((0, 3))])
def test_what_is_no_matrix_is_refused(weight: npt.ArrayLike) -> None:
    refusal_of(esd, weight, says="weight of shape")


# AlphaPruning


def law(spectrum: list[float], start: int) -> tuple[float, float]:
    """Alpha and KS of one start, number by number; infinite KS where no alpha exceeds 1."""
    tail = spectrum[start:]
    n = len(tail)
    total = sum(log(value) - log(tail[0]) for value in tail)
    if total <= 0:
        return float("inf"), float("inf")
    alpha = 1 + n / total
    distances = [
        abs(1 - exp((1 - alpha) * (log(value) - log(tail[0]))) - j / n)
        for j, value in enumerate(tail)
    ]
    return alpha, max(distances)


def off_the_edges(spectrum: list[float]) -> bool:
    """Whether no eigenvalue is so close to a bin's edge that rounding chooses its bin."""
    logs = np.log10(spectrum)
    if logs[-1] - logs[0] < 1e-3:
        return False
    place = (logs[1:-1] - logs[0]) / (logs[-1] - logs[0]) * 100
    return bool((np.abs(place - place.round()) > 1e-6).all())


@given(spectra, st.sampled_from(["shipped", "intended"]))
def test_peak_is_the_least_ks_of_the_candidates(
    spectrum: list[float], xmin: str
) -> None:
    assume(off_the_edges(spectrum))
    heights, edges = np.histogram(np.log10(spectrum), bins=100)
    x2 = float(10 ** edges[heights.argmax()])  # left edge of the first highest bin
    lo = np.log10(0.95 * x2) if xmin == "shipped" else 0.95 * x2
    starts = [i for i in range(len(spectrum) - 1) if lo <= spectrum[i] <= 1.5 * x2]
    distances = {i: law(spectrum, i)[1] for i in starts}
    if not starts or min(distances.values()) == float("inf"):
        refusal_of(alphapruning_alpha, spectrum, "peak", xmin, says="no power law")
        return
    fit = alphapruning_alpha(spectrum, "peak", xmin)  # type: ignore[arg-type]
    assert fit.start in starts
    assert fit.ks == pytest.approx(min(distances.values()), abs=1e-12)
    assert fit.ks == pytest.approx(distances[fit.start], abs=1e-12)
    assert fit.alpha == pytest.approx(law(spectrum, fit.start)[0], rel=1e-9)


@given(spectra)
def test_mid_starts_in_the_middle(spectrum: list[float]) -> None:
    middle = len(spectrum) // 2
    assume(log(spectrum[-1]) - log(spectrum[middle]) > 1e-9)
    fit = alphapruning_alpha(spectrum, "mid")
    alpha, ks = law(spectrum, middle)
    assert fit.start == middle
    assert fit.alpha == pytest.approx(alpha, rel=1e-6)
    assert fit.ks == pytest.approx(ks, abs=1e-6)
    assert fit.alpha > 1


@given(spectra, st.integers(0, 5), st.sampled_from(["peak", "mid"]))
def test_zeros_are_dropped_and_counted(
    spectrum: list[float], zeros: int, fit: str
) -> None:
    assume(spectrum[len(spectrum) // 2] < 0.99 * spectrum[-1])
    try:
        plain = alphapruning_alpha(spectrum, fit)  # type: ignore[arg-type]
    except RefimplError:  # bins so wide that none of the candidates is in reach
        assume(False)
    padded = alphapruning_alpha([0.0] * zeros + spectrum, fit)  # type: ignore[arg-type]
    assert padded.zeros_dropped == zeros
    assert (padded.alpha, padded.start, padded.ks) == (
        plain.alpha,
        plain.start,
        plain.ks,
    )


def test_spectra_closer_than_a_bin_or_equal() -> None:
    nearly = [100.0, 100.0 * (1 + 1e-14), 100.0 * (1 + 3e-14)]
    assert alphapruning_alpha(nearly).alpha > 1e12
    for fit in ("peak", "mid"):
        for hopeless in ([], [0.0, 0.0], [2.0], [0.0, 2.0], [3.0] * 5):
            refusal_of(alphapruning_alpha, hopeless, fit, says="no power law")


@pytest.mark.parametrize(
    "spectrum", [[2.0, 1.0], [-1.0, 1.0], [1.0, float("nan")], [[1.0, 2.0]]]
)
def test_what_is_no_spectrum_is_refused(spectrum: npt.ArrayLike) -> None:
    refusal_of(alphapruning_alpha, spectrum, says="spectrum")


def test_the_search_is_linear_in_memory() -> None:
    spectrum = np.sort(np.random.default_rng(0).pareto(1.0, 4096))
    tracemalloc.start()
    alphapruning_alpha(spectrum)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # all at once would take 134 MB
