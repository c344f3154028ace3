"""Costs in context: the pruned model and its changed blocks, and the step that is made of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gates import model_of
from hypothesis import assume, given
from hypothesis import strategies as st
from refusals import refusal_of
from scipy.special import log_softmax

from refimpl import Settings, forward, prune, read_model, recommended
from refimpl.allocation.scores_json import scores_document
from refimpl.loading.samples import Tokens, random_tokens
from refimpl.method.equal_marginals import context_slopes
from refimpl.method.projection import project
from refimpl.model.forward import final_state
from refimpl.model.stream import Stream, add_sums, input_of, sum_of_outer_products, sum_of_squares
from refimpl.pruners.decision import PrunerOptions, decision
from refimpl.scoring.context import _LIMIT, final_states
from refimpl.scoring.state_group import probe_counts

LLAMA, TOKENS, JUDGES = model_of("llama"), random_tokens(200, 3, 16), random_tokens(200, 3, 16, 5)
EXACT, SIZES = Settings(dtype=np.float64, threads=2), LLAMA.config.linear_sizes
Floats = npt.NDArray[np.float64]


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt", "magnitude"])
def test_states_are_those_of_the_pruned_model(pruner: Any, tmp_path: Path) -> None:
    """Against a folder of `prune`, and a forward of it in which one block is pruned otherwise."""
    _, made = recommended(LLAMA, TOKENS, 0.5, pruner, EXACT)
    prune(LLAMA, tmp_path / "m", made, pruner, TOKENS, settings=EXACT)
    near = 2e-3 if pruner == "sparsegpt" else 1e-9  # whose new weights the file rounds
    thin, counts = read_model(tmp_path / "m"), probe_counts(made.linear_pruned, SIZES, 0.05)
    ids, how = np.concatenate([TOKENS.ids, JUDGES.ids]), PrunerOptions(pruner)
    with EXACT.open(LLAMA) as resources:
        dense = final_states(LLAMA, ids, 3, None, how, resources)
        ends = final_states(LLAMA, ids, 3, counts, how, resources)
    assert len(dense) == 6
    assert len(ends) == 6 + 2 * 4 * 3
    for model, states in ((LLAMA, dense), (thin, ends)):
        expected = log_softmax(forward(model, ids, dtype=np.float64).logits, axis=-1)
        for n in range(6):
            head = model.head(np.float64)["lm_head.weight"]
            found = log_softmax(states[0, -1, n] @ head.T, axis=-1)  # after the last norm
            np.testing.assert_allclose(found, expected[n], rtol=0, atol=near)
    for variant, block in ((1, 0), (2, 2), (1, 3)):
        stream, total = Stream(thin, dict(enumerate(TOKENS.ids)), np.float64), dict[str, Any]()
        for i in range(4):
            weights: Any = thin.block(i, np.float64)
            if i == block:
                whole = LLAMA.block(i, np.float64)
                sums = sum_of_outer_products if pruner == "sparsegpt" else sum_of_squares
                for h in stream.states.values():
                    add_sums(total, stream.through_with_sums(h, whole, sums)[1])
                for name, count in zip(LLAMA.config.linears[i], counts[variant, i], strict=True):
                    weight, read = whole[f"{name}.weight"], total[input_of(name)]
                    keep, new = decision(weight, read, 3, int(count), how)
                    pruned = np.where(keep, weight if new is None else new, 0)
                    weights = weights | {f"{name}.weight": pruned}
            stream.advance({n: stream.through(h, weights) for n, h in stream.states.items()})
        for n, h in stream.states.items():
            found = final_state(h.stream, LLAMA.head(np.float64), LLAMA.config)[0]
            np.testing.assert_allclose(ends[variant, block, n], found, rtol=0, atol=near)


def test_a_step_keeps_the_budget_and_its_limit_and_helps_other_samples() -> None:
    _, before = recommended(LLAMA, TOKENS, 0.6, settings=EXACT)
    scores, made = recommended(LLAMA, TOKENS, 0.6, settings=EXACT, context=JUDGES)
    assert before.context is None
    assert made.context is not None
    assert made.total_pruned == made.linear_pruned.sum() == before.total_pruned
    change = made.corrected_sparsity - before.corrected_sparsity
    assert np.abs(change).max() <= _LIMIT + 1e-4  # probes are at whole weights
    taken = made.context[1] < made.context[0]
    assert change.any() == taken
    again = recommended(LLAMA, TOKENS, 0.6, settings=replace(EXACT, threads=1), context=JUDGES)[1]
    np.testing.assert_array_equal(again.linear_pruned, made.linear_pruned)
    stored = scores_document(scores, [made])["allocations"][0]["context"]
    assert stored == made.context.tolist()


def test_a_step_that_does_not_help_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def reversed_slopes(*args: Any) -> tuple[Floats, float]:
        slopes, rate = context_slopes(*args)
        return 1 / slopes, rate

    monkeypatch.setattr("refimpl.scoring.context.context_slopes", reversed_slopes)
    _, before = recommended(LLAMA, TOKENS, 0.6, settings=EXACT)
    _, made = recommended(LLAMA, TOKENS, 0.6, settings=EXACT, context=JUDGES)
    assert made.context is not None
    assert made.context[1] > made.context[0]
    np.testing.assert_array_equal(made.linear_pruned, before.linear_pruned)
    np.testing.assert_array_equal(made.corrected_sparsity, before.corrected_sparsity)


def test_other_lengths_are_refused() -> None:
    other = Tokens(JUDGES.ids[:, :9].copy(), "short", "ids")
    refusal_of(recommended, LLAMA, TOKENS, 0.6, context=other, says="seq-len 9")


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=9), st.floats(3, 39))
def test_slopes_of_exponentials(levels: list[float], k: float) -> None:
    a, width = np.array(levels), 0.05
    s = 0.6 + width * np.array([-1.0, 0.0, 1.0])[:, None] + 0 * a
    cost = 2 + a * (np.exp(k * (s - 0.6)) - 1)
    slopes, rate = context_slopes(cost, s, 1.0)
    assert rate == pytest.approx(k, rel=1e-6)
    exact = a * np.sinh(k * width) / width
    np.testing.assert_allclose(slopes, np.maximum(exact, 0.05 * np.median(exact)), rtol=1e-9)
    assert context_slopes(cost[::-1], s, 7.0)[1] == 7.0  # what does not grow has no rate
    assert context_slopes(cost, s, 50.0)[1] == 50.0


@given(st.lists(st.floats(-0.5, 1.5), min_size=2, max_size=9), st.data())
def test_a_floor_for_each_unit(x: list[float], data: st.DataObject) -> None:
    ends = [sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))) for _ in x]
    weights = np.array([data.draw(st.integers(1, 99)) for _ in x])
    low, high = np.array(ends).T
    share = weights / weights.sum()
    assume(share @ (high - low) > 1e-9)  # else the target, rounded, may lie outside
    target = float(share @ low + data.draw(st.floats(0.01, 0.99)) * (share @ (high - low)))
    s = project(x, weights, target, low, high)
    assert (low <= s).all()
    assert (s <= high).all()
    assert share @ s == pytest.approx(target, abs=1e-12)
    inside = (s > low) & (s < high)
    moved = (s - np.array(x))[inside]
    assert moved.size < 2 or np.ptp(moved) < 1e-12
