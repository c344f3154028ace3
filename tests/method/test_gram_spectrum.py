"""Power laws from Gram matrices against those from singular values, near ties above all."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import generators, seeds

from refimpl.errors import RefimplError
from refimpl.method import spectrum as spectra_of_weights
from refimpl.method.spectrum import PowerLaw, alphapruning_alpha, certain_law, esd, peak, power_law

Floats = npt.NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)
fits = st.sampled_from([("peak", "shipped"), ("peak", "intended"), ("mid", "shipped")])


def start_of(spectrum: Floats, fit: tuple[str, str]) -> int | None:
    try:
        return alphapruning_alpha(spectrum, *fit).start  # type: ignore[arg-type]
    except RefimplError:
        return None


@st.composite
def spectra(draw: st.DrawFn) -> Floats:
    """Positive and ascending, over up to twelve decades; often with equal eigenvalues."""
    rng = draw(generators)
    size, decades = draw(st.integers(3, 40)), draw(st.sampled_from([0.0, 0.5, 3.0, 12.0]))
    logs = decades * rng.beta(draw(st.floats(0.3, 4)), 2, size) + draw(st.floats(-3, 3))
    if draw(st.booleans()):
        logs[: size // 2] = logs[0]
    return np.sort(10**logs)


@st.composite
def near_ties(draw: st.DrawFn, fit: tuple[str, str]) -> Floats:
    """A spectrum between two others, as close as halving gets to where the choice changes."""
    first = draw(spectra())
    second = np.sort(first ** draw(st.floats(0.7, 1.3)) * draw(st.floats(0.5, 2)))
    moved = draw(st.integers(0, first.size - 1))
    second[moved:] *= draw(st.floats(1, 1.5))
    start, low, high = start_of(first, fit), 0.0, 1.0
    if start_of(second, fit) != start:
        for _ in range(60):
            middle = (low + high) / 2
            between = np.sort(first ** (1 - middle) * second**middle)
            low, high = (middle, high) if start_of(between, fit) == start else (low, middle)
    return np.sort(first ** (1 - low) * second**low)


def weight_of(spectrum: Floats, columns: int, seed: int) -> Floats:
    """A weight with given squared singular values, [n, columns]."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((spectrum.size, spectrum.size)))[0]
    right = np.linalg.qr(rng.standard_normal((columns, spectrum.size)))[0]
    return np.asarray(left * np.sqrt(spectrum) @ right.T)


def law_or_error(law: object, *arguments: object) -> PowerLaw | str:
    try:
        return law(*arguments)  # type: ignore[operator, no-any-return]
    except RefimplError as error:
        return error.problem


@given(
    st.data(),
    fits,
    st.sampled_from(["as drawn", "near tie", "rank-deficient", "tiny"]),
    st.booleans(),
    st.integers(0, 40),
    seeds,
)
def test_choices_are_those_of_the_singular_values(
    data: st.DataObject, fit: tuple[str, str], kind: str, tall: bool, more: int, seed: int
) -> None:
    spectrum = data.draw(near_ties(fit) if kind == "near tie" else spectra())
    if kind in ("rank-deficient", "tiny"):
        spectrum[: spectrum.size // 3] *= 0 if kind == "rank-deficient" else 1e-18
    weight = weight_of(spectrum, spectrum.size + more, seed)
    weight = weight.T if tall else weight
    ours = law_or_error(power_law, weight, *fit)
    exact = law_or_error(lambda *how: alphapruning_alpha(esd(weight), *how), *fit)
    if isinstance(ours, str) or isinstance(exact, str):
        assert ours == exact
        return
    assert (ours.start, ours.zeros_dropped) == (exact.start, exact.zeros_dropped)
    assert ours.alpha == pytest.approx(exact.alpha, rel=1e-6)


@given(st.data(), fits, st.booleans(), st.floats(-15, -4), seeds)
def test_no_error_within_the_bound_changes_a_certain_choice(
    data: st.DataObject, fit: tuple[str, str], tie: bool, exponent: float, seed: int
) -> None:
    spectrum = data.draw(near_ties(fit) if tie else spectra())
    for tried in np.arange(exponent, -15.5, -2):  # few choices are certain at the largest errors
        error = float(spectrum[-1] * 10**tried)
        if (law := certain_law(spectrum, error, *fit)) is not None:
            break
    assume(law is not None)
    assert law is not None
    rng = np.random.default_rng(seed)
    for extreme in (True, False):
        off = rng.choice([-1.0, 1.0], spectrum.size)
        moved = np.sort(spectrum + error * (off if extreme else off * rng.random(spectrum.size)))
        again = alphapruning_alpha(moved, *fit)  # type: ignore[arg-type]
        assert (again.start, again.zeros_dropped) == (law.start, 0)
        assert again.alpha == pytest.approx(law.alpha, rel=1e-6)


@pytest.mark.parametrize("xmin", ["shipped", "intended"])
def test_an_eigenvalue_at_the_end_of_the_candidates_is_uncertain(xmin: str) -> None:
    changed = 0
    for seed in range(200):
        spectrum = np.sort(10 ** np.random.default_rng(seed).normal(2, 0.4, 30))
        x2, _ = peak(np.log10(spectrum))
        end = spectrum.searchsorted(1.5 * x2)
        if not 0 < end < spectrum.size - 1:
            continue
        spectrum[end] = 1.5 * x2
        moved = [spectrum * np.where(np.arange(30) == end, k, 1) for k in (1 - 1e-12, 1 + 1e-12)]
        starts = {start_of(each, ("peak", xmin)) for each in moved}
        changed += len(starts) == 2
        assert len(starts) == 1 or certain_law(spectrum, 1e-11 * spectrum[-1], "peak", xmin) is None
    assert changed


@given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 5), seeds)
def test_the_bound_holds_for_eigenvalues(rows: int, columns: int, kind: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns))
    weight = (
        weight,
        np.abs(weight),
        np.full_like(weight, rng.random() + 0.1),
        weight * 10.0 ** rng.uniform(-8, 0, (1, columns)),
        weight * 10.0 ** rng.uniform(-8, 0, (rows, 1)),
        0.1 + 1e-4 * weight,
    )[kind]
    smaller, exact = weight if rows <= columns else weight.T, esd(weight)
    off = np.abs(np.linalg.eigvalsh(smaller @ smaller.T) - exact).max()
    assert off <= 4 * max(rows, columns) * EPS * exact[-1]


@pytest.mark.parametrize("shape", [(64, 160), (160, 64)])
def test_an_ordinary_weight_takes_no_singular_values(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = np.random.default_rng(0).standard_normal(shape)
    expected = alphapruning_alpha(esd(weight))
    monkeypatch.setattr(spectra_of_weights, "esd", lambda matrix: pytest.fail("singular values"))
    law = power_law(weight)
    assert (law.start, law.bin_margin) == (expected.start, expected.bin_margin)
    assert law.alpha == pytest.approx(expected.alpha, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-150, 1e-120, 1e120])
def test_squares_that_vanish_or_overflow_take_singular_values(scale: float) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 9)) * scale
    assert power_law(weight) == alphapruning_alpha(esd(weight))
