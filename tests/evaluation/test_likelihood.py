"""Log likelihoods against a plain softmax over transformers' logits, however they are computed."""

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from gates import SAME_TABLES, bits, expected_of, layouts, model_of
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from scipy.special import log_softmax
from tables import cases

from refimpl import Model
from refimpl.evaluation import likelihood
from refimpl.evaluation.likelihood import (
    RunningSoftmax,
    batch_groups,
    batches,
    group_likelihoods,
    tokens_in_memory,
)
from refimpl.model.ops import Array
from refimpl.running.file_system import MIB
from refimpl.running.threads import Workers

TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
IDS = [
    [1, 5, 7, 3],
    [2, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 12],
    [2, 90],
    [5, 5, 5, 5, 100],
]


def likelihoods_of(
    model: Model,
    sequences: Any,
    threads: int = 1,
    memory: int = MIB,
    dtype: str = "float64",
) -> list[Array]:
    """Log probabilities of each sequence's tokens but the first."""
    laid, found = batches(list(sequences), model.config), dict[int, Array]()
    with Workers(threads) as workers:
        for group in batch_groups(laid, tokens_in_memory(model, laid, memory, dtype)):
            found |= group_likelihoods(model, group, workers, dtype)
    return [found[n] for n in range(len(found))]


@cache
def found_of(case: str) -> tuple[Array, ...]:
    return tuple(likelihoods_of(model_of(case), IDS))


def assert_close(some: Any, others: Any, tolerance: float) -> None:
    for one, other in zip(some, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", layouts(SAME_TABLES))
def test_they_are_a_softmax_of_the_logits(case: str, dtype: str) -> None:
    ids, expected = expected_of(case)
    found = likelihoods_of(model_of(case), ids, dtype=dtype)
    for row, z, one in zip(ids, expected["logits"], found, strict=True):
        plain = np.take_along_axis(log_softmax(z[:-1], -1), row[1:, None], -1)[:, 0]
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, plain, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "mistral", "opt"])
def test_padding_and_neighbours_do_not_matter(case: str) -> None:
    alone = [likelihoods_of(model_of(case), [ids])[0] for ids in IDS]
    assert_close(found_of(case), alone, 1e-11)


@given(
    order=st.permutations(range(len(IDS))),
    tokens=st.integers(1, 40),
    rows=st.integers(1, 9),
    piece=st.integers(9, 300),
)
def test_layout_changes_rounding_only(
    order: list[int], tokens: int, rows: int, piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "_BATCH", tokens)
        patch.setattr(likelihood, "_ROWS", rows)
        patch.setattr(likelihood, "_PIECE", piece)
        found = likelihoods_of(model_of("llama_linear"), [IDS[i] for i in order])
    assert_close(found, [found_of("llama_linear")[i] for i in order], 1e-11)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_memory_and_threads_change_no_bit(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "_BATCH", 12)
    model = model_of("llama")
    largest = max(made.ids.size for made in batches(IDS, model.config))
    least = 2 * largest * model.config.hidden_size * np.dtype(dtype).itemsize
    first, *others = (
        likelihoods_of(model, IDS, threads, memory=memory, dtype=dtype)
        for threads in (1, 3)
        for memory in (least, 2 * least, MIB)
    )
    assert all(bits(other) == bits(first) for other in others)
    options = {
        "memory": least - 1,
        "dtype": dtype,
        "remedy": f"use --memory {least} or more",
    }
    refusal_of(likelihoods_of, model, IDS, **options)


def test_the_cost_ticks_to_its_sum() -> None:
    model, ticks = model_of("llama"), list[float]()
    laid = batches(IDS, model.config)
    with Workers(1) as workers:
        group_likelihoods(model, laid, workers, tick=ticks.append)
    assert sum(ticks) == pytest.approx(sum(b.cost(model.config) for b in laid))


@given(st.data())
def test_a_softmax_in_pieces_is_the_whole_one(data: st.DataObject) -> None:
    n, v = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    value = st.sampled_from([-3e4, -2.0, -1.0, 0.0, 1.0, 1.5, 80.0, 3e4])
    rows = st.lists(value, min_size=v, max_size=v)
    z = np.array(data.draw(st.lists(rows, min_size=n, max_size=n)), "f4")
    targets = np.array(
        data.draw(st.lists(st.integers(0, v - 1), min_size=n, max_size=n))
    )
    cuts = sorted({0, v, *data.draw(st.lists(st.integers(0, v), max_size=3))})
    found = RunningSoftmax.start(targets)
    for low, high in pairwise(cuts):
        found = found.add(z[:, low:high], low)
    plain = log_softmax(z.astype("f8"), axis=-1)[np.arange(n), targets]
    np.testing.assert_allclose(found.log_probabilities, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("sequences", "problem"), cases("evaluation", "bad_sequences"))
def test_bad_sequences_are_refused(sequences: Any, problem: str) -> None:
    refusal_of(likelihoods_of, model_of("llama"), sequences, says=problem)


def test_the_longest_sequence_is_predicted_to_its_end() -> None:
    (found,) = likelihoods_of(model_of("llama"), [list(range(65))])
    assert found.shape == (64,)
