"""ADMM against its own code and its textbook form, and refits against least squares."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peer_numbers import PEERS
from refusals import refusal_of
from strategies import seeds, shapes

from refimpl.arguments import Bools, Floats
from refimpl.pruners.admm import admm
from refimpl.pruners.counts import Pattern, parse_pattern
from refimpl.pruners.decision import PrunerOptions, decision
from refimpl.pruners.pruner import SharedFactor, pruners
from refimpl.pruners.refit import refitted

FLOAT32 = 1e-5  # of the largest weight: what the peer's float32 leaves; measured 1.7e-6
SIZES = shapes(4, 9)


@cache
def peer() -> Any:
    return np.load(PEERS / "admm.npz")


CASES = sorted({key.split("|")[0] for key in peer().files} - {"source"})


def problem(
    seed: int, rows: int, columns: int, tokens: int = 0
) -> tuple[Floats, Floats]:
    """A weight, and inputs [T, C], twice as many as columns if not said."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens or 2 * columns, columns)) * random.lognormal(
        0, 1, columns
    )
    return random.standard_normal((rows, columns)), x


@pytest.mark.parametrize("case", CASES)
def test_admm_is_that_of_its_code(case: str) -> None:
    assert len(CASES) == 6
    weight, x, sparsity, theirs = (
        peer()[f"{case}|{name}"] for name in ("weight", "inputs", "sparsity", "pruned")
    )
    outer = x.T.astype(np.float64) @ x
    target = parse_pattern(case) if ":" in case else float(sparsity)
    keep, new = admm(weight, outer, target, compat="peer")
    np.testing.assert_array_equal(keep, theirs != 0)
    np.testing.assert_allclose(new, theirs, rtol=0, atol=FLOAT32 * np.abs(theirs).max())
    exact, _ = admm(
        weight, outer, target if ":" in case else int(weight.size * sparsity)
    )
    if (
        case != "2:4"
    ):  # where only counts between the first and the last round may differ
        assert (exact != keep).any()


def by_the_book(weight: Floats, x: Floats, count: int, pattern: Pattern | None) -> Any:
    """The rounds as the paper has them: W transposed, with Y, Z and U."""
    outer = x.T @ x
    d = np.sqrt(np.diag(outer)) + 1e-8
    g = outer / np.outer(d, d)
    g = g + 0.1 * np.diag(g).mean() * np.eye(len(g))
    b = (weight * d).T
    a, y, u = np.linalg.inv(g + np.eye(len(g))), g @ b, np.zeros_like(b)
    for t in range(20):
        if t < 15:
            size = np.abs(b + u).T.copy()
            if pattern is not None:
                groups = size.reshape(-1, pattern.group)
                for group in groups:
                    group[np.argsort(group, kind="stable")[pattern.pruned :]] = np.inf
            order = np.argsort(size, axis=None, kind="stable")
            mask = np.ones(weight.size, bool)
            mask[order[: round(count * (1 - (1 - (t + 1) / 15) ** 3))]] = False
            mask = mask.reshape(weight.shape).T
        z = (b + u) * mask
        u = u + b - z
        b = a @ (y + z - u)
    return mask.T, ((b + u) * mask).T / d


@given(
    seeds, SIZES, st.sampled_from(["", "2:4", "1:3", "4:8", "1:1", "0:2"]), st.data()
)
def test_admm_is_that_of_the_paper(
    seed: int, shape: tuple[int, int], text: str, data: st.DataObject
) -> None:
    pattern = parse_pattern(text) if text else None
    weight, x = problem(seed, shape[0], 2 * pattern.group if pattern else shape[1])
    count = data.draw(st.integers(0, weight.size))
    if pattern is not None:
        count = 2 * shape[0] * pattern.pruned
    keep, new = admm(weight, x.T @ x, pattern or count)
    expected, weights = by_the_book(weight, x, count, pattern)
    np.testing.assert_array_equal(keep, expected)
    np.testing.assert_allclose(new, weights, rtol=1e-8, atol=1e-8)
    assert int((~keep).sum()) == count
    if pattern is not None:
        assert ((~keep).reshape(-1, pattern.group).sum(axis=1) == pattern.pruned).all()


def test_linears_of_one_input_share_a_matrix_and_many_rows_go_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, x = problem(3, 12, 8)
    alone = admm(weight, x.T @ x, 40)
    shared = SharedFactor(x.T @ x)
    monkeypatch.setattr("refimpl.pruners.admm._AT_ONCE", 40)
    for _ in range(2):
        found = admm(weight, shared, 40)
        np.testing.assert_array_equal(found[0], alone[0])
        np.testing.assert_allclose(found[1], alone[1], rtol=1e-12, atol=1e-12)


def test_dead_inputs_go_first_in_admm() -> None:
    weight, x = problem(4, 3, 8)
    x[:, 2] = 0
    keep, _ = admm(weight, x.T @ x, 3)
    assert not keep[:, 2].any()
    assert keep[:, np.arange(8) != 2].all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"outer": np.full((12, 12), np.nan)}, "NaN or Inf"),
        ({"weight": np.full((2, 12), np.inf)}, "NaN or Inf"),
        ({"outer": np.eye(11)}, "(11, 11) for a weight of shape (2, 12)"),
        ({"target": 25}, "count"),
        ({"target": 0.5}, "count"),
        ({"target": Pattern(2, 8)}, "2:8 on a weight of shape (2, 12)"),
        ({"target": Pattern(1, 4), "compat": "peer"}, "prunes 2:4 whatever is asked"),
        ({"target": 1.5, "compat": "peer"}, "sparsity"),
    ],
)
def test_what_admm_refuses(changes: dict[str, Any], says: str) -> None:
    arguments = {
        "weight": np.ones((2, 12)),
        "outer": np.eye(12),
        "target": 3,
        **changes,
    }
    refusal_of(admm, **arguments, says=says)


# Refits


def least_squares(
    weight: Floats, keep: Bools, x: Floats, damping: float, scale: float
) -> Floats:
    """Each row by `numpy.linalg.lstsq` on the inputs, and on rows that stand for the damping."""
    added = damping * scale * np.square(x).sum(axis=0).mean()
    inputs = np.concatenate([np.sqrt(scale) * x, np.sqrt(added) * np.eye(x.shape[1])])
    new = np.zeros_like(weight)
    for row, kept in enumerate(keep):
        if kept.any():
            new[row, kept] = np.linalg.lstsq(inputs[:, kept], inputs @ weight[row])[0]
    return new


@given(seeds, SIZES, st.sampled_from([0.0, 0.01, 1.0]), st.floats(0, 1))
def test_a_refit_is_least_squares(
    seed: int, shape: tuple[int, int], damping: float, share: float
) -> None:
    weight, x = problem(seed, *shape)
    keep = np.random.default_rng(seed + 1).random(shape) < share
    found = refitted(weight, keep, 0.5 * x.T @ x, damping)
    expected = least_squares(weight, keep, x, damping, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)
    removed = found[~keep]
    assert not removed.any()
    assert not np.signbit(removed).any()


def error(new: Floats, weight: Floats, x: Floats) -> float:
    return float(np.square(x @ (new - weight).T).sum())


@pytest.mark.parametrize("name", sorted(pruners()))
@pytest.mark.parametrize("goal", [300, Pattern(2, 4)])
def test_every_pruner_is_refitted(name: str, goal: int | Pattern) -> None:
    """The decision stays, and no other values of the weights have a smaller error."""
    weight, x = problem(7, 12, 48, tokens=200)
    need, damping = pruners()[name].needs, 1e-6
    sums = {None: None, "squares": np.square(x).sum(axis=0), "products": x.T @ x}
    keep, own = decision(weight, sums[need], 4, goal, PrunerOptions(name, damping))
    refit = PrunerOptions(name, damping, refit=True)
    shared = SharedFactor(x.T @ x, 2 / 4)
    for total in (x.T @ x, shared, shared):  # of which the second finds the factor
        again, new = decision(weight, total, 4, goal, refit)
        np.testing.assert_array_equal(again, keep)
        assert new is not None
        expected = least_squares(weight, keep, x, damping, 0.5)
        np.testing.assert_allclose(new, expected, rtol=1e-6, atol=1e-6)
    before = error(np.where(keep, weight if own is None else own, 0), weight, x)
    assert error(new, weight, x) < before * 0.999


def test_dead_inputs_keep_their_weights_in_a_refit() -> None:
    weight, x = problem(8, 3, 6)
    x[:, 1] = 0
    keep = np.ones(weight.shape, bool)
    keep[:, 4] = False
    found = refitted(weight, keep, x.T @ x)
    np.testing.assert_allclose(found[:, 1], weight[:, 1], rtol=1e-12)


def test_what_a_refit_refuses() -> None:
    says = "not positive definite"
    refusal_of(refitted, [[1.0, 2.0]], [[True, False]], np.ones((2, 2)), 0.0, says=says)
    refusal_of(
        refitted, [[1.0, 2.0]], [[True]], np.eye(2), says="a decision of shape (1, 1)"
    )
    refusal_of(refitted, [[1.0, np.nan]], [[True, True]], np.eye(2), says="NaN")
    peers = PrunerOptions("wanda", refit=True)
    says = "refitted wanda with compat peer"
    refusal_of(decision, np.ones((2, 2)), np.eye(2), 1, 0.5, peers, "peer", says=says)
