"""Counts are whole, within their unit, in proportion, and sum to the budget to the weight."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refusal_of
from tables import cases

from refimpl.method.projection import project
from refimpl.pruners.counts import apportion, counts, split_count, total_count

sparsities = st.floats(0, 1)
small_sizes = st.lists(st.integers(1, 12), min_size=1, max_size=9)
large_sizes = st.lists(st.integers(1, 10**10), min_size=1, max_size=9)


def by_hand(quotas: list[Fraction], total: int) -> list[int]:
    """Largest remainder, one weight at a time, in exact fractions."""
    given_out = [q.numerator // q.denominator for q in quotas]
    remainders = [q - n for q, n in zip(quotas, given_out, strict=True)]
    for _ in range(total - sum(given_out)):
        best = max(range(len(quotas)), key=lambda u: (remainders[u], -u))
        given_out[best] += 1
        remainders[best] = Fraction(-1)
    return given_out


@given(sparsities, st.integers(1, 10**12))
def test_total_is_the_nearest_whole_number(sparsity: float, total: int) -> None:
    count = total_count(sparsity, total)
    assert 0 <= count <= total
    assert abs(count - Fraction(str(sparsity)) * total) <= Fraction(
        1, 2
    )  # the decimal, exactly


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan"), float("inf")])
def test_total_refuses_what_is_no_fraction(sparsity: float) -> None:
    refusal_of(total_count, sparsity, 10, says="sparsity")


@given(st.one_of(small_sizes, large_sizes), st.data())
def test_counts_spend_the_budget_to_the_weight(
    sizes: list[int], data: st.DataObject
) -> None:
    sparsity = data.draw(sparsities)
    wish = data.draw(
        st.lists(st.floats(-0.5, 1.5), min_size=len(sizes), max_size=len(sizes))
    )
    fractions = project(wish, sizes, sparsity)
    result = counts(fractions, sizes, sparsity)
    assert int(result.sum()) == total_count(sparsity, sum(sizes))
    assert (result >= 0).all()
    assert (result <= np.array(sizes)).all()
    assert (np.abs(result - fractions * sizes) < 1).all()


@given(small_sizes, st.data())
def test_counts_are_the_largest_remainder(
    sizes: list[int], data: st.DataObject
) -> None:
    eighths = [
        data.draw(st.integers(0, 8 * size)) for size in sizes
    ]  # exact in float64, and tied
    total = sum(eighths) // 8
    result = apportion([n / 8 for n in eighths], sizes, total)
    assert result.tolist() == by_hand([Fraction(n, 8) for n in eighths], total)


@given(st.one_of(small_sizes, large_sizes), st.data())
def test_linears_of_a_block_share_its_count_exactly(
    sizes: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, sum(sizes)))
    result = split_count(count, sizes)
    assert int(result.sum()) == count
    assert result.tolist() == by_hand(
        [Fraction(count * n, sum(sizes)) for n in sizes], count
    )


def test_split_stays_exact_where_float64_is_not() -> None:
    sizes = [2**53 + 1, 2**53 - 1]
    assert split_count(2**53 + 1, sizes).tolist() == [2**52 + 1, 2**52]


@given(small_sizes, sparsities)
def test_off_budget_sparsities_are_refused(sizes: list[int], sparsity: float) -> None:
    off = 1.0 if sparsity < 0.5 else 0.0
    assume(abs(off - sparsity) * sum(sizes) > 2)
    refusal_of(counts, [off] * len(sizes), sizes, sparsity, says="project")


@pytest.mark.parametrize(
    ("fractions", "sizes", "names"), cases("pruners", "bad_counts")
)
def test_bad_input_is_named(
    fractions: list[float], sizes: list[int], names: str
) -> None:
    refusal_of(counts, fractions, sizes, 0.5, says=names)


def test_a_count_must_fit() -> None:
    refusal_of(split_count, 9, [4, 4], says="count 9")
    refusal_of(split_count, -1, [2, 2], says="count -1")


def test_a_sparsity_is_the_decimal_that_was_asked() -> None:
    """0.7 of 165 is 115.5, whose even neighbour is 116; the double nearest to 0.7 is less."""
    assert total_count(0.7, 165) == 116
    assert counts([0.7], [165], 0.7).tolist() == [116]
    tenths = project([0.1, 0.5, 0.9], [1, 1, 1], 0.7)
    assert sum(Fraction(x) for x in tenths.tolist()) - Fraction(21, 10) < Fraction(
        1, 2**51
    )
