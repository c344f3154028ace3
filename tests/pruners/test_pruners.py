"""Patterns, SparseGPT, the control and the peers' decisions, against slow versions of the rules."""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from refusals import refusal_of
from strategies import matrices, seeds, shapes, ties

from refimpl.arguments import Bools, Floats
from refimpl.pruners.counts import (
    Pattern,
    parse_pattern,
    pattern_count,
    pattern_keep,
    split_count,
)
from refimpl.pruners.decision import PrunerOptions, decision
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.pruner import SharedFactor, inverse_of_upper
from refimpl.pruners.sparsegpt import compensated, sparsegpt
from refimpl.pruners.wanda import WANDA, wanda_keep

Rule = Callable[[Floats], Bools]
Pruned = tuple[Bools, Floats]

patterns = st.integers(1, 8).flatmap(
    lambda m: st.builds(Pattern, pruned=st.integers(0, m), group=st.just(m))
)


def lowest(score: Floats, count: int) -> Bools:
    """Keep all but the `count` lowest, ties to the lower row-major index, by sorting pairs."""
    order = sorted((value, index) for index, value in enumerate(score.ravel().tolist()))
    keep = np.ones(score.size, bool)
    keep[[index for _, index in order[:count]]] = False
    return keep.reshape(score.shape)


def lowest_of_groups(score: Floats, pattern: Pattern) -> Bools:
    groups = [
        lowest(group, pattern.pruned) for group in score.reshape(-1, pattern.group)
    ]
    return np.reshape(groups, score.shape)


def above_threshold(score: Floats, sparsity: float) -> Bools:
    ordered = sorted(score.ravel().tolist())
    return score > ordered[int(len(ordered) * sparsity)]


@given(patterns, st.integers(1, 4), st.integers(1, 4), st.data())
def test_patterns_by_sorting(
    pattern: Pattern, rows: int, groups: int, data: st.DataObject
) -> None:
    shape = (rows, groups * pattern.group)
    score = data.draw(hnp.arrays(np.float64, shape, elements=ties))
    before = score.copy()
    keep = pattern_keep(score, pattern)
    assert ((~keep).reshape(-1, pattern.group).sum(axis=1) == pattern.pruned).all()
    assert int((~keep).sum()) == pattern_count(shape, pattern)
    np.testing.assert_array_equal(keep, lowest_of_groups(score, pattern))
    np.testing.assert_array_equal(score, before)


@given(patterns)
def test_a_pattern_reads_as_it_prints(pattern: Pattern) -> None:
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2",
        "2:",
        ":4",
        "2/4",
        "2:4:8",
        "a:b",
        "-1:4",
        "1.5:4",
        " 2:4",
        "5:4",
        "0:0",
        "²:4",
    ],
)
def test_nonsense_is_no_pattern(text: str) -> None:
    refusal_of(parse_pattern, text, says="2:4")


@pytest.mark.parametrize(
    ("pruned", "group"), [(-1, 4), (5, 4), (0, 0), (1, 0), (0, -2)]
)
def test_a_pattern_out_of_range(pruned: int, group: int) -> None:
    assert f"{pruned}:{group}" in str(
        refusal_of(Pattern, pruned, group, says="counts the zeros")
    )


def test_what_a_pattern_refuses() -> None:
    says = {"says": "2:4 on a weight of shape (3, 6)", "remedy": "prune to a sparsity"}
    refusal_of(pattern_keep, np.zeros((3, 6)), Pattern(2, 4), **says)
    refusal_of(pattern_keep, np.zeros(8), Pattern(2, 4), says="of shape [8]")
    refusal_of(pattern_keep, [[1.0, float("nan"), 0.0, 2.0]], Pattern(2, 4), says="NaN")


# The control


def random_keep(
    shape: tuple[int, int], target: int | Pattern, seed: int, *linear: int
) -> Bools:
    block, index = linear
    pruner = PrunerOptions("random", seed=seed)
    return decision(np.ones(shape), None, 0, target, pruner, linear=(block, index))[0]


@given(shapes(6, 9), seeds, st.data())
def test_random_counts_are_exact(
    shape: tuple[int, int], seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, prod(shape)))
    keep = random_keep(shape, count, seed, 1, 2)
    assert keep.shape == shape
    assert int((~keep).sum()) == count
    np.testing.assert_array_equal(keep, random_keep(shape, count, seed, 1, 2))


@given(patterns, st.integers(1, 3), st.integers(1, 3), seeds)
def test_random_patterns_are_exact(
    pattern: Pattern, rows: int, groups: int, seed: int
) -> None:
    shape = (rows, groups * pattern.group)
    keep = random_keep(shape, pattern, seed, 0, 0)
    assert ((~keep).reshape(-1, pattern.group).sum(axis=1) == pattern.pruned).all()


@pytest.mark.parametrize("target", [3, Pattern(1, 4)])
def test_every_place_is_as_likely_as_another(target: int | Pattern) -> None:
    # 4000 draws at p = 1/4: 5 standard deviations are 137.
    pruned = sum(
        (~random_keep((3, 4), target, 0, i, 0)).astype(int) for i in range(4000)
    )
    assert np.abs(pruned - 1000).max() < 137


def test_every_linear_has_its_own_places() -> None:
    places = {
        random_keep((8, 8), 32, *key).tobytes()
        for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1)]
    }
    assert len(places) == 5
    refusal_of(random_keep, (2, 2), 5, 0, 0, 0, says="count 5")


def problem(
    seed: int, rows: int, columns: int, samples: int = 0
) -> tuple[Floats, Floats]:
    """A weight, and a Hessian of inputs that are correlated and of unequal size."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((samples or 3 * columns, columns)) * random.uniform(
        0.3, 3, columns
    )
    x += random.standard_normal((len(x), 1))
    return random.standard_normal((rows, columns)), 2 / len(x) * x.T @ x


def damped(h: Floats, damping: float) -> Floats:
    h = h + np.diag(np.where(np.diag(h) == 0, 1.0, 0.0))
    return h + damping * np.mean(np.diag(h)) * np.eye(len(h))


def counted(target: int, rows: int, columns: int, width: int) -> Rule:
    """The exact counts, column block after column block."""
    widths = [min(width, columns - start) for start in range(0, columns, width)]
    counts = iter(split_count(target, [rows * w for w in widths]).tolist())
    return lambda saliency: lowest(saliency, next(counts))


def by_elimination(
    weight: Floats,
    h: Floats,
    target: float | Pattern,
    damping: float = 0.01,
    width: int = 128,
) -> Pruned:
    """Optimal Brain Surgeon, word for word: the inverse for the columns left, at every column.

    Setting w_i to zero moves the columns left by -w_i G_i / G_ii, with G the inverse of their
    part of H; its saliency is w_i^2 / G_ii. The target is a count, a pattern, or a peer's sparsity.
    """
    step = width
    if isinstance(target, Pattern):
        step, rule = target.group, partial(lowest_of_groups, pattern=target)
    elif isinstance(target, int):
        rule = counted(target, *weight.shape, width)
    else:
        rule = partial(above_threshold, sparsity=target)
    left, columns = damped(h, damping), weight.shape[1]
    firsts = [
        np.linalg.solve(left[i:, i:], np.eye(columns - i)[0]) for i in range(columns)
    ]
    ease = np.array(
        [first[0] for first in firsts]
    )  # `firsts` are rows 0 of the inverses
    new, keep = weight.copy(), np.ones(weight.shape, bool)
    for start in range(0, columns, width):
        end = min(start + width, columns)
        for i in range(start, end):
            if (i - start) % step == 0:
                group = slice(i, min(i + step, end))
                saliency = np.where(
                    np.diag(h)[group] == 0, 0, new[:, group] ** 2 / ease[group]
                )
                keep[:, group] = rule(saliency)
            lost = np.where(keep[:, i], 0, new[:, i])
            new[:, i:] -= np.outer(lost, firsts[i] / ease[i])
            new[~keep[:, i], i] = 0
    return keep, new


def same(found: Pruned, expected: Pruned) -> None:
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-9, atol=1e-9)
    pruned = found[1][~found[0]]
    assert not pruned.any()
    assert not np.signbit(pruned).any()


def error(new: Floats, weight: Floats, h: Floats) -> Floats:
    """The squared output error of every row: d H d^T."""
    return np.einsum("ri,ij,rj->r", new - weight, h, new - weight)


def best(weight: Floats, h: Floats, keep: Bools) -> Floats:
    """Row by row, the kept weights that minimise d H d^T."""
    new = np.zeros_like(weight)
    for row, kept in enumerate(keep):
        if kept.any():
            new[row, kept] = np.linalg.solve(h[kept][:, kept], h[kept] @ weight[row])
    return new


sizes = shapes(4, 9)


@given(seeds, sizes, st.sampled_from([0.0, 0.01, 1.0]), st.integers(1, 10), st.data())
def test_sparsegpt_is_elimination(
    seed: int, shape: tuple[int, int], damping: float, width: int, data: st.DataObject
) -> None:
    weight, h = problem(seed, *shape)
    count = data.draw(st.integers(0, weight.size))
    before = weight.tobytes(), h.tobytes()
    keep, new = sparsegpt(weight, h, count, damping, width)
    same((keep, new), by_elimination(weight, h, count, damping, width))
    assert int((~keep).sum()) == count
    assert (weight.tobytes(), h.tobytes()) == before


@given(
    seeds,
    patterns,
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.booleans(),
)
def test_sparsegpt_with_a_pattern_is_elimination(
    seed: int,
    pattern: Pattern,
    rows: int,
    groups: int,
    groups_at_a_time: int,
    dead: bool,
) -> None:
    weight, h = problem(seed, rows, groups * pattern.group)
    if dead:  # inputs that are always zero: they go first
        h[1::4] = h[:, 1::4] = 0
        weight[:, 1::4] *= 1e6
    width = groups_at_a_time * pattern.group
    keep, new = sparsegpt(weight, h, pattern, width=width)
    same((keep, new), by_elimination(weight, h, pattern, width=width))
    assert ((~keep).reshape(-1, pattern.group).sum(axis=1) == pattern.pruned).all()


@pytest.mark.parametrize("target", [1, 389, 930, Pattern(2, 4)])
def test_sparsegpt_beyond_128_columns(target: int | Pattern) -> None:
    weight, h = problem(5, rows=5, columns=260)
    keep, new = sparsegpt(weight, h, target)
    same((keep, new), by_elimination(weight, h, target))
    if not isinstance(target, Pattern):
        per_block = [int((~keep[:, i : i + 128]).sum()) for i in (0, 128, 256)]
        assert per_block == split_count(target, [640, 640, 20]).tolist()
        assert sum(per_block) == target


@given(seeds, st.integers(1, 3), st.integers(2, 9), st.data())
def test_what_is_left_is_best(
    seed: int, rows: int, columns: int, data: st.DataObject
) -> None:
    # The first k columns gone, the others free: the least-squares solution.
    first = data.draw(st.integers(1, columns - 1))
    weight, h = problem(seed, rows, columns)
    keep = np.broadcast_to(np.arange(columns) >= first, weight.shape)
    _, new = compensated(
        weight, h, lambda s, start: keep, columns, damping=0, width=columns
    )
    np.testing.assert_allclose(new, best(weight, h, keep), rtol=1e-8, atol=1e-8)
    zeroed = np.where(keep, weight, 0)
    assert (error(new, weight, h) <= error(zeroed, weight, h) + 1e-12).all()


@given(seeds, sizes, st.data())
def test_dead_inputs_go_first(
    seed: int, shape: tuple[int, int], data: st.DataObject
) -> None:
    weight, h = problem(seed, *shape)
    dead = data.draw(hnp.arrays(bool, shape[1]))
    weight[:, dead] *= 1e6
    h[dead] = h[:, dead] = 0
    count = data.draw(st.integers(0, weight.size))
    keep, new = sparsegpt(weight, h, count)
    assert int((~keep).sum()) == count
    assert int((~keep[:, dead]).sum()) == min(count, shape[0] * int(dead.sum()))
    np.testing.assert_array_equal(new[keep & dead], weight[keep & dead])
    same((keep, new), by_elimination(weight, h, count))


@pytest.mark.parametrize("columns", [1, 64, 65, 130, 333])
def test_the_factor_is_one_of_the_inverse(columns: int) -> None:
    _, h = problem(8, 1, columns, samples=2 * columns + 2)
    factor = inverse_of_upper(SharedFactor.of(h).factored(0.01)[0])
    np.testing.assert_array_equal(factor, np.triu(factor))
    assert (np.diag(factor) > 0).all()
    identity = np.eye(columns)
    np.testing.assert_allclose(
        factor @ damped(h, 0.01) @ factor.T, identity, atol=1e-12
    )
    by_inverse = np.linalg.cholesky(np.linalg.inv(damped(h, 0.01))).T
    np.testing.assert_allclose(factor, by_inverse, rtol=1e-8, atol=1e-11)


def test_the_factor_of_an_ill_conditioned_hessian() -> None:
    # Condition 1e8: measured 6e-10, and 6e-4 where the inverse is formed and then factored.
    vectors, _ = np.linalg.qr(np.random.default_rng(9).standard_normal((200, 200)))
    h = vectors * np.logspace(-4, 4, 200) @ vectors.T
    h = (h + h.T) / 2
    factor = inverse_of_upper(SharedFactor.of(h).factored(0)[0])
    np.testing.assert_allclose(factor @ h @ factor.T, np.eye(200), atol=1e-8)


def test_fewer_tokens_than_inputs_are_enough_with_damping() -> None:
    weight, h = problem(10, 4, 200, samples=50)
    assert int((~sparsegpt(weight, h, 500)[0]).sum()) == 500


def test_a_hessian_that_does_not_factor_says_what_to_change() -> None:
    h = np.array([[1.0, 1.02], [1.02, 1.0]])
    weight, says = [[1.0, 2.0]], "not positive definite"
    refusal_of(
        sparsegpt,
        weight,
        h,
        1,
        says=f"{says} with damping 0.01\n",
        remedy="a larger damping",
    )
    assert int((~sparsegpt(weight, h, 1, damping=0.1)[0]).sum()) == 1
    once = {"says": "damping 0\n", "remedy": "a larger damping (default 0.01)"}
    refusal_of(sparsegpt, weight, np.ones((2, 2)), 1, damping=0, **once)
    refusal_of(sparsegpt, weight, -np.eye(2), 1, says=says, remedy="a larger")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"hessian": np.where(np.eye(12, k=11), np.nan, 1.0)},
            "NaN or Inf in the weight or its H",
        ),
        (
            {"weight": np.where(np.arange(24) == 5, np.inf, 1.0).reshape(2, 12)},
            "NaN or Inf",
        ),
        ({"hessian": np.eye(11, 12)}, "(11, 12) for a weight of shape (2, 12)"),
        ({"target": 25}, "count 25"),
        ({"target": Pattern(2, 8)}, "2:8 on a weight of shape (2, 12)"),
        ({"target": Pattern(1, 3)}, "1:3 with SparseGPT, which takes 128 columns"),
        ({"weight": np.ones(12)}, "(12,)"),
        ({"damping": -0.01}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": float("inf")}, "damping"),
    ],
)
def test_what_sparsegpt_refuses(changes: dict[str, Any], says: str) -> None:
    weight, h = problem(11, 2, 12)
    refusal_of(
        sparsegpt, **{"weight": weight, "hessian": h, "target": 3, **changes}, says=says
    )


def test_the_hessian_has_the_peers_scale() -> None:
    x = np.random.default_rng(12).standard_normal((3, 7, 5))  # 3 sequences of 7 tokens
    x[:, :, 1] = 0  # with a dead input, whose H is 1, the scale moves the damping
    running = np.zeros((5, 5))
    for seen, sequence in enumerate(x):  # a running mean, as the peer's
        running = running * (seen / (seen + 1)) + 2 / (seen + 1) * sequence.T @ sequence
    outer = np.einsum("nti,ntj->ij", x, x)
    weight = np.random.default_rng(13).standard_normal((2, 5))
    keep, new = decision(weight, outer, 3, 4, PrunerOptions("sparsegpt", 0.3))
    assert new is not None
    same((keep, new), sparsegpt(weight, running, 4, 0.3))


@given(matrices(ties, 4, 9), st.floats(0, 1.5))
def test_wanda_as_its_code_decides(weight: Floats, sparsity: float) -> None:
    score = np.abs(weight)
    assert WANDA.keep is not None
    keep = WANDA.keep(score, sparsity)
    for row, kept in zip(score, keep, strict=True):
        np.testing.assert_array_equal(
            kept, lowest(row, min(int(row.size * sparsity), row.size))
        )


@given(matrices(ties, 4, 9), st.floats(0, 0.999))
def test_magnitude_as_its_code_decides(weight: Floats, sparsity: float) -> None:
    score = np.abs(weight)
    keep = magnitude_keep(score, sparsity)
    np.testing.assert_array_equal(keep, above_threshold(score, sparsity))
    assert int((~keep).sum()) > int(score.size * sparsity)


@given(seeds, sizes, st.floats(0, 0.999), st.integers(1, 10), st.data())
def test_sparsegpt_as_its_code_decides(
    seed: int, shape: tuple[int, int], sparsity: float, width: int, data: st.DataObject
) -> None:
    weight, h = problem(seed, *shape)
    dead = data.draw(
        hnp.arrays(bool, shape[1], elements=st.sampled_from([False, False, True]))
    )
    h[dead] = h[:, dead] = 0
    keep, new = sparsegpt(weight, h, sparsity, width=width, compat="peer")
    start = np.where(dead, 0, weight)
    expected = by_elimination(start, h, sparsity, width=width)
    same((keep, new), (expected[0] & ~dead, expected[1]))
    assert not new[:, dead].any()


@given(seeds, st.integers(1, 3), st.integers(1, 3))
def test_the_peers_pattern_loses_dead_inputs_on_top(
    seed: int, rows: int, groups: int
) -> None:
    weight, h = problem(seed, rows, 4 * groups)
    h[:3] = h[:, :3] = 0
    keep, new = sparsegpt(weight, h, Pattern(2, 4), compat="peer")
    pruned = (~keep).reshape(rows, groups, 4).sum(axis=2)
    assert (pruned[:, 0] == 3).all()
    assert (pruned[:, 1:] == 2).all()
    assert not new[~keep].any()


@pytest.mark.parametrize("sparsity", [1.0, 1.3, -0.1, float("nan"), float("inf")])
def test_sparsities_at_which_the_peers_fail(sparsity: float) -> None:
    weight, h = problem(14, 3, 5)
    refusal_of(magnitude_keep, np.abs(weight), sparsity, says=str(sparsity))
    refused = str(refusal_of(sparsegpt, weight, h, sparsity, compat="peer"))
    assert "sparsity" in refused or "target" in refused
    if not sparsity >= 1 or sparsity == np.inf:
        refusal_of(wanda_keep, np.abs(weight), sparsity, says=str(sparsity))


def test_the_peers_refuse_nan_too() -> None:
    spoiled = np.array([[1.0, float("nan")]])
    for decide in (wanda_keep, magnitude_keep):
        refusal_of(decide, spoiled, 0.5, says="NaN")
    refusal_of(sparsegpt, spoiled, np.eye(2), 0.5, compat="peer", says="NaN")
    says = "(3, 3) for a weight of shape (1, 2)"
    refusal_of(sparsegpt, [[1.0, 2.0]], np.eye(3), 0.5, compat="peer", says=says)
