"""The absorption coefficient and the divergence, against their formulas on generated numbers."""

import warnings
from math import exp, fsum, isnan, log, sqrt
from statistics import mean, stdev

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import sem
from strategies import generators, shapes

from refimpl.method.absorption import absorption_coefficient, nan_mean, surviving_drift
from refimpl.method.perturbation import RunningDivergence

Floats = npt.NDArray[np.float64]
Logits = tuple[Floats, Floats, list[int]]

NAN = float("nan")
ROUNDING = 1e-12

drifts = st.one_of(st.floats(1e-9, 1e9), st.just(0.0), st.just(NAN))


@st.composite
def ratios(draw: st.DrawFn) -> Floats:
    """Ratios, [sequences, draws, blocks], some of them unknown."""
    rng, shape = draw(generators), draw(shapes(6, 3, 3))
    x = 10 ** rng.uniform(-6, 3, shape)
    return np.where(rng.random(shape) < draw(st.sampled_from([0.0, 0.3, 0.7])), NAN, x)


# Means and ratios


@given(ratios(), st.sampled_from([None, 0, 1, 2, (0, 1), (0, 2)]))
def test_mean_of_what_is_known(x: Floats, axis: int | tuple[int, ...] | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an empty mean
        expected = np.nanmean(x, axis=axis)
    np.testing.assert_allclose(nan_mean(x, axis), expected, rtol=ROUNDING, strict=True)


@given(st.lists(st.tuples(drifts, drifts), min_size=1, max_size=9))
def test_a_share_needs_a_drift_to_begin_with(pairs: list[tuple[float, float]]) -> None:
    last, first = np.array(pairs).T
    expected = [a / b if b > 0 else NAN for a, b in pairs]
    np.testing.assert_allclose(surviving_drift(last, first), expected, rtol=ROUNDING)
    whole = surviving_drift(first, first)  # all of it is left where it was made
    np.testing.assert_array_equal(whole, np.where(first > 0, 1.0, NAN))


# The coefficient and its error


@given(ratios())
def test_coefficient_is_a_mean_over_draws_and_then_over_sequences(x: Floats) -> None:
    r, stderr = absorption_coefficient(x)
    for block in range(x.shape[2]):
        known = [
            [v for v in draws if not isnan(v)] for draws in x[:, :, block].tolist()
        ]
        sequences = [mean(values) for values in known if values]
        n = len(sequences)
        scale = max(sequences, default=0.0)
        expected = mean(sequences) if n else NAN
        error = stdev(sequences) / sqrt(n) if n > 1 else NAN
        assert r[block] == pytest.approx(expected, rel=ROUNDING, nan_ok=True)
        assert stderr[block] == pytest.approx(error, abs=ROUNDING * scale, nan_ok=True)
        if n > 1:
            assert stderr[block] == pytest.approx(sem(sequences), abs=ROUNDING * scale)


# Divergence


def kl(z: list[float], perturbed: list[float]) -> float:
    """``sum p (log p - log p')`` of two softmaxes, number by number."""

    def log_softmax(x: list[float]) -> list[float]:
        return [v - max(x) - log(fsum(exp(w - max(x)) for w in x)) for v in x]

    log_p, log_q = log_softmax(z), log_softmax(perturbed)
    return fsum(exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


@st.composite
def logits(draw: st.DrawFn, largest: float = 30) -> Logits:
    """Clean and perturbed logits [S, V], and where the vocabulary is cut."""
    rng, shape = draw(generators), draw(shapes(3, 8))
    z, perturbed = largest * rng.uniform(-1, 1, (2, *shape))
    if draw(st.booleans()):  # ties, zeros and both ends
        z, perturbed = (np.rint(2 * x / largest) / 2 * largest for x in (z, perturbed))
    cuts = rng.permutation(np.arange(1, shape[1]))[: draw(st.integers(0, 3))]
    return z, perturbed, sorted(cuts.tolist())


def running(z: Floats, perturbed: Floats, cuts: list[int] | None = None) -> Floats:
    found = RunningDivergence.start(len(z))
    for a, b in zip(
        np.split(z, cuts or [], 1), np.split(perturbed, cuts or [], 1), strict=True
    ):
        found = found.add(a, b)
    return found.value


def room(z: Floats, perturbed: Floats) -> float:
    """What rounding may leave: logits are taken from each other."""
    return 1e-14 * (1 + float(np.abs(z).max()) + float(np.abs(perturbed).max()))


@given(logits())
def test_divergence_is_the_direct_sum(case: Logits) -> None:
    z, perturbed, cuts = case
    expected = [kl(a, b) for a, b in zip(z.tolist(), perturbed.tolist(), strict=True)]
    found = running(z, perturbed, cuts)
    np.testing.assert_allclose(found, expected, rtol=ROUNDING, atol=room(z, perturbed))
    assert (found >= 0).all()


@given(logits(1e300))
def test_equal_distributions_do_not_diverge(case: Logits) -> None:
    z, _, cuts = case
    assert not running(z, z, cuts).any()
    z = np.clip(z, -100, 100)
    assert running(z, z + 1.5, cuts).max() < 1e-12


@given(logits(1e300))
@example((np.array([[1e300, -1e300]]), np.array([[-1e300, 1e300]]), [1]))
@example((np.array([[-1e300, 1e300]]), np.array([[1e300, -1e300]]), [1]))
@example((np.array([[-1e300, -1e300]]), np.array([[1e300, 1e300]]), []))
def test_huge_logits_do_not_overflow(case: Logits) -> None:
    found = running(*case)
    assert np.isfinite(found).all()
    assert (found >= 0).all()


@given(logits(3e38))
@example((np.array([[3e38, -3e38]]), np.array([[-3e38, 3e38]]), []))
def test_float32_logits_are_summed_in_float64(case: Logits) -> None:
    z, perturbed = (x.astype(np.float32) for x in case[:2])
    exact = running(z.astype(np.float64), perturbed.astype(np.float64), case[2])
    np.testing.assert_array_equal(running(z, perturbed, case[2]), exact)


@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6])
def test_small_changes_are_resolved(size: float) -> None:
    # KL is of second order in the change; in float32 the first order alone would leave 1e-7.
    rng = np.random.default_rng(0)
    z, d = rng.standard_normal((4, 50)), size * rng.standard_normal((4, 50))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    mean_d = (p * d).sum(axis=1)
    second_order = (p * (d - mean_d[:, None]) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(
        running(z, z + d), second_order, rtol=3 * size + 1e-14 / size**2
    )


def test_nothing_is_changed_in_place() -> None:
    rng = np.random.default_rng(1)
    z, perturbed = rng.standard_normal((2, 3, 5))
    start = RunningDivergence.start(3)
    before = start.add(z, perturbed)
    value, copies = before.value, (z.copy(), perturbed.copy())
    before.add(perturbed, z)
    np.testing.assert_array_equal(before.value, value)
    np.testing.assert_array_equal(start.total, np.zeros(3))
    for array, copy in zip((z, perturbed), copies, strict=True):
        np.testing.assert_array_equal(array, copy)
