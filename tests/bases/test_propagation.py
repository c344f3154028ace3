"""Propagation against its formula, taken word for word, and against what must hold of it."""

from math import exp, log

import numpy as np
import pytest
from gates import model_of
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from scipy.stats import rankdata

from refimpl import Probes, Request, allocate, score
from refimpl.bases.propagation import propagation, reach
from refimpl.tokens import random_tokens

signals = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=12)
widths, steepnesses = st.floats(0, 1), st.floats(0.1, 50)


@given(signals, st.floats(0, 1), widths, steepnesses)
def test_it_is_its_formula(g: list[float], s: float, width: float, steepness: float) -> None:
    p = (rankdata(g) - 0.5) / len(g)  # the mean rank of ties
    f = [1 / (1 + exp(-steepness * (x - 0.5))) - 0.5 for x in p]
    most = max(map(abs, f)) or 1.0
    d = [width * x / most for x in f]
    expected = [s - x + sum(d) / len(d) for x in d]
    found = propagation(g, s, width, steepness)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert found.mean() == pytest.approx(s, abs=1e-12)
    assert np.ptp(found) <= 2 * width + 1e-12


def test_the_reach_is_the_mean_logarithm_over_the_blocks_from_the_pruned_one_on() -> None:
    drift = np.array([[0.5, 0.25, 0.2], [np.nan, 0.4, 0.1], [np.nan, np.nan, 0.3]])
    expected = [(log(0.5) + log(0.25) + log(0.2)) / 3, (log(0.4) + log(0.1)) / 2, log(0.3)]
    assert reach(drift).tolist() == pytest.approx(expected)
    assert reach([[0.0]]) < -700  # nothing was pruned: felt least of all


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_on_a_model_it_follows_blocks_that_are_pruned_alone(case: str) -> None:
    model = model_of(case)
    tokens = random_tokens(model.config.vocab_size, 2, 16)
    request = Request("propagation", {"width": 0.1}, sparsity=0.6, correct=None)
    scores = score(model, tokens, request=request)
    at_uniform = score(model, tokens, Probes(), Request("uniform", sparsity=0.6))
    drift = at_uniform.sweep[0].drift
    found = allocate(scores, request)
    s = propagation(reach(drift), 0.6, 0.1)
    np.testing.assert_allclose(found.base_sparsity - found.base_sparsity.mean(), s - s.mean())
    assert found.total_pruned == round(0.6 * found.total_weights)
    refusal_of(allocate, at_uniform, request, says="propagation: not in these scores")
    refusal_of(allocate, scores, request, sparsity=0.5, says="measured by pruning")
