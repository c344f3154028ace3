"""The zeros that the peers' own code left in a tiny Llama, and ours for the same input.

Block by block, as the peers do it: the statistics of a block come from inputs that passed the
pruned blocks before it, the block itself still dense; then it is pruned and run again. The peers
stored float32 weights after every block, and so does this loop.

How far a decision was from being another one is its margin: the relative distance from the highest
score that goes to the lowest that stays. The peers decide in float32, so a bit could differ where a
margin lies within the rounding of that, and the difference would spread. It is measured here, by
doing the same once more in float32: no margin lies within it, so all bits have to agree.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
from peer_numbers import TINY, expected, tiny

from refimpl.model.forward import block, embed, places
from refimpl.model.statistics import INPUT_OF, input_of
from refimpl.pruners.checks import Bools, Floats
from refimpl.pruners.compensation import PrunedWeight, compensated
from refimpl.pruners.decision import Pruner, decision
from refimpl.pruners.magnitude import magnitude_keep_peer, magnitude_score
from refimpl.pruners.pattern import Pattern, pattern_keep
from refimpl.pruners.sparsegpt import hessian
from refimpl.pruners.wanda import wanda_score

Method = Literal["wanda", "magnitude", "sparsegpt"]
Target = float | Pattern
Rule = Callable[[Any, int], Bools]

SEQUENCES = 8
WEIGHTS = 1e-4  # of a linear's largest weight, and of every row's norm


@dataclass(frozen=True)
class Linear:
    """A pruned linear; `outer` [in, in] is the sum of the outer products of its inputs."""

    dense: Floats
    outer: Floats
    target: Target
    pruned: PrunedWeight


def targets(case: str) -> tuple[Method, list[Target]]:
    """The method of a case, and the peer's own sparsity of each block."""
    method: Any = case.removesuffix("_2:4").removeprefix("owl_").removeprefix("alpha_")
    per_linear = expected()["alphapruning_alpha_peak"]["sparsity_per_linear"]
    blocks: dict[str, list[Target]] = {
        "owl": expected()["owl"]["sparsity_per_block"],
        "alpha": [per_linear[f"{i}.mlp.down_proj"] for i in range(4)],
        "2:4": [Pattern(2, 4)] * 4,
        "uniform": [0.7] * 4,
    }
    return method, next((blocks[key] for key in blocks if key in case), blocks["uniform"])


@cache
def run(case: str, dtype: str) -> dict[tuple[int, str], Linear]:
    """The whole model pruned; activations in `dtype`, everything else in float64."""
    (method, of_block), model, ids = targets(case), tiny(), np.load(TINY / "tokens.npy")
    config, positions = model.config, np.arange(ids.shape[1])
    where, found = places(positions, config, dtype), dict[tuple[int, str], Linear]()
    states = [embed(row[None], positions, model.embedding(), config, dtype) for row in ids]
    for i, kind in enumerate(config.blocks):
        dense = model.block(i, np.float64)
        weights = dict(model.block(i, dtype))
        sums: dict[str, Floats] = {}

        def add(name: str, value: Any, sums: dict[str, Floats] = sums) -> Any:
            if name in INPUT_OF.values():
                x = value.reshape(-1, value.shape[-1]).astype(np.float64)
                sums[name] = sums.get(name, 0.0) + x.T @ x
            return value

        for state in states:
            block(state, weights, replace(where[kind], observe=add), config)
        for name in config.linears[i]:
            weight, outer = dense[f"{name}.weight"], sums[input_of(name)]
            total, pruner = np.diag(outer) if method == "wanda" else outer, Pruner(method)
            keep, new = decision(weight, total, SEQUENCES, of_block[i], pruner, "peer")
            pruned = PrunedWeight(keep, np.where(keep, weight, 0.0) if new is None else new)
            found[i, name] = Linear(weight, outer, of_block[i], pruned)
            weights[f"{name}.weight"] = pruned.weight.astype(np.float32).astype(dtype)
        states = [block(state, weights, where[kind], config) for state in states]
    return found


@cache
def kept() -> Any:
    return np.load(TINY / "keep.npz")


def peers_key(case: str, i: int, name: str) -> str:
    return f"{case}|{i}/{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"


CASES = sorted({key.split("|")[0] for key in kept().files})


def in_float32(weight: Floats, h: Floats, rule: Rule, step: int) -> None:
    """SparseGPT's arithmetic in single precision, the inverse formed and then factored."""
    left = weight.astype(np.float32)
    damped = (h + 0.01 * np.mean(np.diag(h)) * np.eye(len(h))).astype(np.float32)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    for start in range(0, len(h), 128):
        end = min(start + 128, len(h))
        errors = np.zeros((len(weight), end - start), np.float32)
        keep = np.ones(errors.shape, bool)
        for i in range(start, end):
            if (i - start) % step == 0:
                some = slice(i, min(i + step, end))
                score = left[:, some] ** 2 / np.diag(factor)[some] ** 2
                keep[:, i - start : some.stop - start] = rule(score, i)
            errors[:, i - start] = np.where(keep[:, i - start], 0, left[:, i]) / factor[i, i]
            left[:, i:end] -= np.outer(errors[:, i - start], factor[i, i:end])
        left[:, end:] -= errors @ factor[start:end, end:]


def decided_on(case: str, at: tuple[int, str], dtype: str) -> tuple[list[Floats], int | None]:
    """The scores of every decision on a linear, [decisions, scores]; how many of each row go."""
    method, linear = targets(case)[0], run(case, dtype)[at]
    weight, target = linear.dense, linear.target
    seen: list[Floats] = []
    width = target.group if isinstance(target, Pattern) else None

    def rule(score: Any, start: int) -> Bools:
        if isinstance(target, Pattern):
            seen.append(score.astype(np.float64).reshape(-1, target.group))
            return pattern_keep(score, target)
        seen.append(score.astype(np.float64).reshape(1, -1))
        return magnitude_keep_peer(score, target)

    if method == "sparsegpt":
        h = hessian(run(case, "float64")[at].outer, SEQUENCES)
        if dtype == "float32":
            in_float32(weight, h, rule, width or 128)
        else:
            again = compensated(weight, h, rule, width or 128, 0.01, 128)
            np.testing.assert_array_equal(again.keep, linear.pruned.keep)
    elif method == "magnitude":
        rule(magnitude_score(weight), 0)
    else:
        score = wanda_score(weight, np.diag(linear.outer) / SEQUENCES)
        seen.append(score.reshape(-1, width or score.shape[1]))
    return seen, (target.pruned if isinstance(target, Pattern) else None)


def margins(case: str) -> tuple[Floats, Floats]:
    """Of every decision of a run the margin, and the rounding of its two scores in float32."""
    method, found = targets(case)[0], []
    for at, linear in run(case, "float64").items():
        rows, pruned = decided_on(case, at, "float64")
        rounded, _ = decided_on(case, at, "float32")
        for score, single in zip(rows, rounded, strict=True):
            count = pruned or int(score.shape[1] * linear.target) + (method != "wanda")
            two = np.argsort(score, axis=1, kind="stable")[:, count - 1 : count + 1]
            exact, close = (np.take_along_axis(s, two, axis=1) for s in (score, single))
            margin = (exact[:, 1] - exact[:, 0]) / exact[:, 1]
            found.append((margin, np.sum(np.abs(close - exact) / exact, axis=1)))
    margin, rounding = (np.concatenate(part) for part in zip(*found, strict=True))
    return margin, rounding


def test_all_cases_are_here() -> None:
    assert CASES == [
        "alpha_wanda", "magnitude", "owl_sparsegpt", "owl_wanda",
        "sparsegpt", "sparsegpt_2:4", "wanda", "wanda_2:4",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_the_zeros_are_the_peers(case: str, dtype: str) -> None:
    assert len(run(case, dtype)) == 28
    for (i, name), linear in run(case, dtype).items():
        key = peers_key(case, i, name)
        ours = linear.pruned.weight.astype(np.float32) != 0
        assert ours.shape == tuple(kept()[f"{key}|shape"])
        theirs = np.unpackbits(kept()[key])[: ours.size].reshape(ours.shape)
        assert int((ours != theirs).sum()) == 0, key


@pytest.mark.parametrize("case", CASES)
def test_no_decision_lies_within_rounding(case: str) -> None:
    # Measured: margins from 1.06e-6 (wanda), 1.68e-5 (SparseGPT's), 5.1e-6 (magnitude, whose scores
    # are exact), each at least 11 times its rounding.
    margin, rounding = margins(case)
    decisions = {"magnitude": 28, "wanda": 2304, "sparsegpt": 32}
    assert margin.size == (43008 if "2:4" in case else decisions[targets(case)[0]])
    assert (margin > 3 * rounding).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sparsegpts_weights_are_the_peers(dtype: str) -> None:
    # Measured: 8.5e-6 of the largest weight, 1.3e-5 of a row.
    for (i, name), linear in run("sparsegpt", dtype).items():
        theirs = kept()[f"{peers_key('sparsegpt', i, name)}|weight"].astype(np.float64)
        apart = linear.pruned.weight - theirs
        assert np.abs(apart).max() < WEIGHTS * np.abs(theirs).max(), (i, name)
        rows = np.linalg.norm(apart, axis=1) / np.linalg.norm(theirs, axis=1)
        assert rows.max() < WEIGHTS, (i, name)
