"""Logits of sequences on cores of their own, against transformers and against each other."""

import numpy as np
import pytest
from gates import GATES, SAME_TABLES, bits, expected_of, model_of, worst_token
from refusals import refusal_of

from refimpl import HeldModel, logits

IDS = [[1, 5, 7, 3], [2, 4, 9], [5, 5, 0, 100, 6]]


@pytest.mark.parametrize("dtype", GATES)
@pytest.mark.parametrize("case", SAME_TABLES)
def test_they_are_those_of_transformers(case: str, dtype: str) -> None:
    ids, expected = expected_of(case)
    found = logits(model_of(case), ids, dtype)
    assert len(found) == len(ids)
    for mine, theirs in zip(found, expected["logits"], strict=True):
        assert mine.dtype == dtype
        assert worst_token(mine, theirs) <= GATES[dtype]


@pytest.mark.parametrize("ids", [IDS, IDS[:1]])
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
    for row, found in zip(IDS, logits(model, IDS), strict=True):
        assert bits(logits(model, [row], threads=1)) == bits([found])
    assert logits(model, []) == []


def test_bad_input_is_refused() -> None:
    model = model_of("llama")
    refusal_of(logits, model, [[1, 2], [3, 264]], says="1 token ids are outside the vocabulary")
    refusal_of(logits, model, [[1, 2], []], says="shape [1, 0]")
    refusal_of(logits, model, [[[1, 2]], [[3]]], says="shape [1, 1, 2]")
    refusal_of(logits, model, [[[1, 2], [3]]], says="sequences [[[1, 2], [3]]]")
    refusal_of(logits, model, [[0.5]], says="dtype float64")
    for ids in ([1, 5, 7], np.array([1, 5, 7])):
        refusal_of(logits, model, ids, says="ids in place of sequences", remedy="[ids]")
    refusal_of(logits, model, IDS, threads=0, says="threads 0")
    refusal_of(logits, model, IDS[:1], threads=0, says="threads 0")
