"""Log likelihoods against a plain softmax over transformers' logits, however they are computed."""

from functools import cache
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from gates import GATES, SAME_TABLES, bits, expected_of, model_of, worst_token
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from scipy.special import log_softmax
from tables import cases

from refimpl import HeldModel, Model, logits
from refimpl.evaluation import likelihood
from refimpl.evaluation.likelihood import (
    Likelihood,
    RunningSoftmax,
    batches,
    group_likelihoods,
    groups,
    log_likelihoods,
)
from refimpl.running.settings import MIB
from refimpl.running.threads import Workers

TOLERANCE = {"float32": 1e-4, "float64": 1e-11}
IDS = [[1, 5, 7, 3], [2, 4], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 12], [2, 90], [5, 5, 5, 5, 100]]
STARTS = [2, 1, 1, 1, 4]


def likelihoods_of(
    model: Model, sequences: Any, starts: list[int], threads: int = 1, **options: Any
) -> list[Likelihood]:
    options = {"memory": MIB, "dtype": "float64"} | options
    with Workers(threads) as workers:
        return log_likelihoods(model, list(sequences), starts, workers, **options)


@cache
def found_of(case: str) -> tuple[Likelihood, ...]:
    return tuple(likelihoods_of(model_of(case), IDS, STARTS))


def assert_close(some: list[Likelihood], others: list[Likelihood], tolerance: float) -> None:
    for one, other in zip(some, others, strict=True):
        left, right = one.log_probabilities, other.log_probabilities
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)
        assert one.greedy == other.greedy


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", SAME_TABLES)
def test_they_are_a_softmax_of_the_logits(case: str, dtype: str) -> None:
    ids, expected = expected_of(case)
    starts = [1 + i for i in range(len(ids))]
    found = likelihoods_of(model_of(case), ids, starts, dtype=dtype)
    for row, z, start, one in zip(ids, expected["logits"], starts, found, strict=True):
        before = slice(start - 1, len(row) - 1)
        plain = np.take_along_axis(log_softmax(z[before], -1), row[start:, None], -1)[:, 0]
        assert one.log_probabilities.dtype == np.float64
        np.testing.assert_allclose(one.log_probabilities, plain, rtol=0, atol=TOLERANCE[dtype])
        assert one.greedy == bool((z[before].argmax(-1) == row[start:]).all())


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "mistral"])
def test_a_continuation_that_is_the_arg_max_is_greedy(case: str) -> None:
    ids, expected = expected_of(case)
    best = int(expected["logits"][0, 4].argmax())
    prompt = ids[0, :5].tolist()
    sequences = [[*prompt, *ids] for ids in ([best], [(best + 1) % 100], [best, best])]
    right, wrong, late = likelihoods_of(model_of(case), sequences, [5, 5, 5])
    assert (right.greedy, wrong.greedy) == (True, False)
    assert right.log_probabilities[0] > wrong.log_probabilities[0]
    assert late.log_probabilities[0] == pytest.approx(right.log_probabilities[0], abs=1e-12)


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "mistral", "opt"])
def test_padding_and_neighbours_do_not_matter(case: str) -> None:
    alone = [likelihoods_of(model_of(case), [s], [t])[0] for s, t in zip(IDS, STARTS, strict=True)]
    assert_close(list(found_of(case)), alone, 1e-11)


@given(
    order=st.permutations(range(len(IDS))),
    tokens=st.integers(1, 40),
    rows=st.integers(1, 9),
    piece=st.integers(9, 300),
)
def test_layout_changes_rounding_only(order: list[int], tokens: int, rows: int, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "BATCH", tokens)
        patch.setattr(likelihood, "ROWS", rows)
        patch.setattr(likelihood, "PIECE", piece)
        ids, starts, expected = (
            [values[i] for i in order] for values in (IDS, STARTS, found_of("llama_linear"))
        )
        found = likelihoods_of(model_of("llama_linear"), ids, starts)
    assert_close(found, expected, 1e-11)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_memory_and_threads_change_no_bit(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "BATCH", 12)
    model = model_of("llama")
    largest = max(made.ids.size for made in batches(IDS, STARTS, model.config))
    least = 2 * largest * model.config.hidden_size * np.dtype(dtype).itemsize
    first, *others = (
        likelihoods_of(model, IDS, STARTS, threads, memory=memory, dtype=dtype)
        for threads in (1, 3)
        for memory in (least, 2 * least, MIB)
    )
    assert all(bits(other) == bits(first) for other in others)
    options = {"memory": least - 1, "dtype": dtype, "remedy": f"use --memory {least} or more"}
    refusal_of(likelihoods_of, model, IDS, STARTS, **options)


def test_the_cost_ticks_to_its_sum() -> None:
    model, ticks = model_of("llama"), list[float]()
    laid = batches(IDS, STARTS, model.config)
    with Workers(1) as workers:
        group_likelihoods(model, laid, workers, tick=ticks.append)
    total = sum(b.cost(model.config) for b in laid)
    assert sum(ticks) == pytest.approx(total)


def test_few_sequences_are_batches_for_several_cores() -> None:
    config, windows = model_of("llama").config, np.arange(6 * 33).reshape(6, 33)
    for count, made in ((1, 1), (2, 2), (6, 6)):
        assert len(batches(windows[:count], [1] * count, config)) == made
    many = (np.arange(33) + np.arange(64)[:, None]) % 264
    assert [len(b.ids) for b in batches(many, [1] * 64, config)] == [16] * 4


@given(
    st.lists(st.lists(st.integers(0, 263), min_size=2, max_size=12), min_size=1, max_size=12),
    st.integers(1, 30),
    st.integers(1, 60),
    st.randoms(use_true_random=False),
)
def test_batches_hold_every_sequence_once(
    sequences: list[list[int]], most: int, tokens: int, random: Random
) -> None:
    starts = [random.randint(1, len(ids) - 1) for ids in sequences]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihood, "BATCH", most)
        made = batches(sequences, starts, model_of("llama").config)
    assert sorted(n for b in made for n in b.members) == list(range(len(sequences)))
    inputs = {tuple(ids[:-1]) for ids in sequences}
    total = sum(map(len, inputs))
    for b in made:
        assert b.ids.size <= min(most, total // 4) or len(b.ids) == 1
        at = 0
        for n, count in zip(b.members, b.counts, strict=True):
            mine = slice(at, at + count)
            row, last = b.places[mine][-1] // b.ids.shape[1], len(sequences[n]) - 1
            assert b.ids[row, :last].tolist() == sequences[n][:last]
            assert (b.places[mine] % b.ids.shape[1]).tolist() == list(range(starts[n] - 1, last))
            assert b.targets[mine].tolist() == sequences[n][starts[n] :]
            at += count
        assert at == len(b.places) == len(b.targets)
    assert sum(len(b.ids) for b in made) == len(inputs)
    widths = [b.ids.shape[1] for b in made]
    assert all(a >= b for a, b in pairwise(widths))
    cut = list(groups(made, tokens))
    assert [id(b) for part in cut for b in part] == [id(b) for b in made]
    assert all(len(part) == 1 or sum(b.ids.size for b in part) <= tokens for part in cut)


@given(st.data())
def test_a_softmax_in_pieces_is_the_whole_one(data: st.DataObject) -> None:
    n, v = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 12))
    value = st.sampled_from([-3e4, -2.0, -1.0, 0.0, 1.0, 1.5, 80.0, 3e4])
    rows = st.lists(value, min_size=v, max_size=v)
    z = np.array(data.draw(st.lists(rows, min_size=n, max_size=n)), "f4")
    targets = np.array(data.draw(st.lists(st.integers(0, v - 1), min_size=n, max_size=n)))
    cuts = sorted({0, v, *data.draw(st.lists(st.integers(0, v), max_size=3))})
    found = RunningSoftmax.start(targets)
    for low, high in pairwise(cuts):
        found = found.add(z[:, low:high], low)
    plain = log_softmax(z.astype("f8"), axis=-1)[np.arange(n), targets]
    np.testing.assert_allclose(found.log_probabilities, plain, rtol=1e-12, atol=1e-14)
    assert found.greedy.tolist() == (z.argmax(-1) == targets).tolist()


@pytest.mark.parametrize(("sequences", "starts", "problem"), cases("evaluation", "bad_sequences"))
def test_bad_sequences_are_refused(sequences: Any, starts: list[int], problem: str) -> None:
    refusal_of(likelihoods_of, model_of("llama"), sequences, starts, says=problem)


def test_the_longest_sequence_is_predicted_to_its_end() -> None:
    (found,) = likelihoods_of(model_of("llama"), [list(range(65))], [1])
    assert found.log_probabilities.shape == (64,)
    assert likelihoods_of(model_of("llama"), [], []) == []


ROWS = [[1, 5, 7, 3], [2, 4, 9], [5, 5, 0, 100, 6]]


@pytest.mark.parametrize("dtype", GATES)
@pytest.mark.parametrize("case", SAME_TABLES)
def test_logits_are_those_of_transformers(case: str, dtype: str) -> None:
    ids, expected = expected_of(case)
    found = logits(model_of(case), ids, dtype)
    assert len(found) == len(ids)
    for mine, theirs in zip(found, expected["logits"], strict=True):
        assert mine.dtype == dtype
        assert worst_token(mine, theirs) <= GATES[dtype]


@pytest.mark.parametrize("ids", [ROWS, ROWS[:1]])
def test_threads_and_kept_weights_change_no_bit(ids: list[list[int]]) -> None:
    model = model_of("llama")
    first, *others = (
        logits(held, ids, threads=threads)
        for held in (model, HeldModel.of(model))
        for threads in (1, 2, 3)
    )
    assert [z.shape for z in first] == [(len(row), model.config.vocab_size) for row in ids]
    assert all(bits(other) == bits(first) for other in others)


def test_sequences_do_not_see_each_other() -> None:
    model = model_of("mistral")
    for row, found in zip(ROWS, logits(model, ROWS), strict=True):
        assert bits(logits(model, [row], threads=1)) == bits([found])
    assert logits(model, []) == []


def test_logits_refuse_bad_input() -> None:
    model = model_of("llama")
    refusal_of(logits, model, [[1, 2], [3, 264]], says="1 token ids are outside the vocabulary")
    refusal_of(logits, model, [[1, 2], []], says="shape [1, 0]")
    refusal_of(logits, model, [[[1, 2]], [[3]]], says="shape [1, 1, 2]")
    refusal_of(logits, model, [[[1, 2], [3]]], says="sequences [[[1, 2], [3]]]")
    refusal_of(logits, model, [[0.5]], says="dtype float64")
    for ids in ([1, 5, 7], np.array([1, 5, 7])):
        refusal_of(logits, model, ids, says="ids in place of sequences", remedy="[ids]")
    refusal_of(logits, model, ROWS, threads=0, says="threads 0")
    refusal_of(logits, model, ROWS[:1], threads=0, says="threads 0")
