"""Perturbed states, their drift and alignment, against the formulas token by token."""

from math import fsum, isnan, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from refusals import refusal_of
from scipy.stats import kstest
from strategies import generators, seeds, shapes
from tables import cases

from refimpl.allocation.request import Noise
from refimpl.method.perturbation import (
    SINK_FACTOR,
    NoiseNorm,
    deviation,
    included_tokens,
    noise,
    perturbed,
    ratio,
)
from refimpl.scoring.state_group import sink_share

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
States = tuple[Floats, Floats, Bools]

ROUNDING = 1e-12
EPS = float(np.finfo(np.float64).eps)

noise_norms = st.sampled_from(["exact", "expected"])


def length(x: npt.ArrayLike) -> float:
    return sqrt(fsum(v * v for v in np.asarray(x, np.float64).ravel().tolist()))


@st.composite
def states(draw: st.DrawFn) -> Floats:
    """A state [S, D]: tokens of norms far apart, zero tokens, channels and tokens alike."""
    rng, shape = draw(generators), draw(shapes(6, 5))
    h = rng.standard_normal(shape)
    if draw(st.booleans()):
        h = h.round()
    return np.asarray(
        h * rng.choice([0.0, 1e-3, 1.0, 1.0, 1.0, 25.0, 1e5], (shape[0], 1))
    )


@st.composite
def noisy(draw: st.DrawFn) -> States:
    """A state [S, D], noise for it, and which tokens are included (at least one)."""
    h, seed = draw(states()), draw(seeds)
    included = np.random.default_rng(seed).random(len(h)) < 0.7
    included[seed % len(h)] = True
    return h, noise(seed, 0, 0, 0, h.shape), included  # type: ignore[arg-type]


@st.composite
def pairs_of_states(draw: st.DrawFn) -> States:
    """A perturbed state and a clean one, [S, D], and which tokens are included."""
    h, z, included = draw(noisy())
    return h + draw(st.sampled_from([0.0, 1e-3, 1.0, 1e3])) * z, h, included


# Sinks


@given(states(), st.sampled_from([np.float32, np.float64]))
@example(
    np.array([[20.0], [1.0], [1.0]]), np.float64
)  # exactly 20 medians: not beyond them
@example(np.array([[20.1], [1.0], [1.0]]), np.float64)
def test_sinks_exceed_twenty_medians(h: Floats, dtype: type) -> None:
    h = h.astype(dtype)
    norms = [length(row) for row in h]
    middle = sorted(norms)[(len(norms) - 1) // 2], sorted(norms)[len(norms) // 2]
    limit = 20 * sum(middle) / 2
    assume(all(n == limit or abs(n - limit) > ROUNDING * limit for n in norms))
    assert included_tokens(h, "exclude").tolist() == [n <= limit for n in norms]
    assert included_tokens(h, "exclude").sum() * 2 >= len(h)
    assert included_tokens(h, "include").all()
    share = fsum(n * n for n in norms if n > limit) / (fsum(n * n for n in norms) or 1)
    assert sink_share(h) == pytest.approx(share, abs=1e-6)


# Noise


@given(st.integers(0, 2**64), *[st.integers(0, 5)] * 3)
def test_noise_belongs_to_its_address(
    seed: int, sequence: int, block: int, draw: int
) -> None:
    shape = (3, 4)
    z = noise(seed, sequence, block, draw, shape)
    child = np.random.SeedSequence(seed)
    for turn in (
        sequence,
        block,
        draw,
    ):  # the same key by walking down the tree of seeds
        child = child.spawn(turn + 1)[turn]
    np.testing.assert_array_equal(
        z,
        np.random.Generator(np.random.Philox(child)).standard_normal(shape),
        strict=True,
    )
    others = [
        (sequence + 1, block, draw),
        (sequence, block + 1, draw),
        (sequence, block, draw + 1),
    ]
    for other in [*others, (block + 7, draw, sequence)]:
        assert not (z == noise(seed, *other, shape)).any()
    np.testing.assert_array_equal(
        noise(seed, sequence, block, draw, shape), z
    )  # in any order
    assert not (z == noise(seed + 1, sequence, block, draw, shape)).any()


def test_noise_is_standard_normal_and_independent() -> None:
    z = [noise(0, sequence, 1, 0, (100, 20)).ravel() for sequence in range(20)]
    assert kstest(np.concatenate(z), "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(z) - np.eye(20)).max() < 0.1


# Perturbed states


@given(noisy(), st.floats(1e-4, 10), noise_norms)
def test_perturbed_is_its_formula(case: States, eta: float, norm: NoiseNorm) -> None:
    h, z, included = case
    e = np.zeros_like(h)
    for t in np.flatnonzero(included).tolist():
        size = length(z[t]) if norm == "exact" else sqrt(h.shape[1])
        e[t] = eta * length(h[t]) * z[t] / size
    result = perturbed(h, z, eta, included, norm)
    room = 4 * EPS * np.abs(h).max() + ROUNDING * np.abs(e).max()
    np.testing.assert_allclose(result, h + e, rtol=0, atol=room)
    # Exactly nothing happens to the tokens that are left out.
    np.testing.assert_array_equal(result[~included], h[~included])


@given(noisy())
def test_eta_0_changes_nothing(case: States) -> None:
    h, z, included = case
    before = h.copy(), z.copy(), included.copy()
    np.testing.assert_array_equal(perturbed(h, z, 0.0, included), h, strict=True)
    perturbed(h, z, 0.3, included)
    for array, copy in zip((h, z, included), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@given(noisy(), st.floats(1e-3, 1))
def test_noise_is_scaled_in_float64_and_then_cast(case: States, eta: float) -> None:
    h, z, included = case
    small = h.astype(np.float32)
    result = perturbed(small, z, eta, included)
    assert result.dtype == np.float32
    exact = perturbed(small.astype(np.float64), z, eta, included)
    # One rounding of e and one of the sum.
    room = np.finfo(np.float32).eps * (
        np.abs(small) + 2 * np.abs(exact - small) + 1e-30
    )
    assert (np.abs(result - exact) <= room).all()


def test_noise_is_cast_before_it_is_added() -> None:
    rng = np.random.default_rng(0)
    h, z = (
        rng.standard_normal((40, 50)).astype(np.float32),
        rng.standard_normal((40, 50)),
    )
    e = [0.7 * length(h[t]) / length(z[t]) * z[t] for t in range(40)]
    expected = h + np.array(e).astype(np.float32)
    # Added in float64, one entry in ten would be rounded otherwise.
    result = perturbed(h, z, 0.7, np.ones(40, np.bool_))
    assert (result == expected).mean() > 0.999


# Drift and alignment


@given(pairs_of_states())
def test_deviation_is_its_formula(pair: States) -> None:
    (state, clean, counted), found, nothing = pair, deviation(*pair), float("nan")
    pairs = [(state[t], clean[t]) for t in np.flatnonzero(counted).tolist()]
    drift = [length(a - b) / length(b) if b.any() else nothing for a, b in pairs]
    alignment = [
        fsum((a * b).tolist()) / length(a) / length(b)
        if a.any() and b.any()
        else nothing
        for a, b in pairs
    ]
    np.testing.assert_allclose(found.drift[counted], drift, rtol=ROUNDING, atol=0)
    np.testing.assert_allclose(
        found.alignment[counted], alignment, rtol=0, atol=ROUNDING
    )
    assert np.isnan(found.drift[~counted]).all()
    assert np.isnan(found.alignment[~counted]).all()


def test_float32_states_are_measured_in_float64() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((5, 64)).astype(np.float32) for _ in range(2))
    included = np.ones(5, np.bool_)
    exact = deviation(a.astype(np.float64), b.astype(np.float64), included)
    np.testing.assert_array_equal(
        deviation(a, b, included).drift, exact.drift, strict=True
    )
    np.testing.assert_array_equal(
        deviation(a, b, included).alignment, exact.alignment, strict=True
    )


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.one_of(st.just(0.0), st.floats(1e-6, 1e6)))
    )
)
def test_ratio_divides_or_is_unknown(pairs: list[tuple[float, float]]) -> None:
    top, bottom = [a for a, _ in pairs], [b for _, b in pairs]
    expected = [a / b if b else float("nan") for a, b in pairs]
    np.testing.assert_array_equal(ratio(np.array(top), np.array(bottom)), expected)
    zero = [0.0 if isnan(quotient) else quotient for quotient in expected]
    np.testing.assert_array_equal(ratio(np.array(top), np.array(bottom), 0.0), zero)


# What is refused


@pytest.mark.parametrize(("changes", "names"), cases("method", "noise"))
def test_perturbation_refuses(changes: dict[str, Any], names: str) -> None:
    refusal_of(Noise, **changes, says=names)


def test_the_defaults_are_the_documented_ones() -> None:
    words = ("gaussian", (0.01,), "include", 1, 0, "exact")
    assert tuple(vars(Noise()).values()) == words
    assert Noise(eta=0.5).eta == Noise(eta=np.float64(0.5)).eta == (0.5,)
    assert SINK_FACTOR == 20
