"""Every trace point of every fixture against transformers, and what the forward refuses."""

from functools import reduce
from typing import Any

import numpy as np
import pytest
from gates import CASES, GATES, bits, errors_of, expected_of, model_of, worst_token
from refusals import refusal_of

from refimpl import forward
from refimpl.loading.families import FAMILIES
from refimpl.model import kernels
from refimpl.model.kernels import PLAIN, TILED, Kernels
from refimpl.model.state import State
from refimpl.model.stream import Stream


def test_the_worst_token_counts() -> None:
    expected = np.array([[3e4, 4e4], [3.0, 4.0], [0.0, 0.0]])
    assert worst_token(expected, expected) == 0
    small_token_off = expected + np.array([[0, 0], [0.5, 0], [0, 0]])
    assert worst_token(small_token_off, expected) == pytest.approx(0.1)
    for value in (1e-300, np.nan, np.inf):
        wrong = expected.copy()
        wrong[2, 1] = value
        assert worst_token(wrong, expected) == np.inf
    with pytest.raises(AssertionError, match="shape"):
        worst_token(expected[:1], expected)


def test_every_family_has_a_case() -> None:
    assert {model_of(case).config.family for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize("how", [PLAIN, TILED], ids=["plain", "tiled"])
@pytest.mark.parametrize("dtype", GATES)
@pytest.mark.parametrize("case", CASES)
def test_every_trace_point_is_within_the_gate(
    case: str, dtype: str, how: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "QUERIES", 4)  # so that 13 tokens make four tiles
    monkeypatch.setattr(kernels, "ELEMENTS", 100)
    ids, expected = expected_of(case)
    model = model_of(case)
    out = forward(model, ids, trace=True, dtype=dtype, kernels=how)
    assert set(expected) == {
        name for name in out.trace if not name.endswith("resid_pre")
    }
    state = out.trace["embed"]
    for (
        name,
        value,
    ) in out.trace.items():  # the fixtures lack a block's input: the state before it
        if name.endswith("resid_pre"):
            np.testing.assert_array_equal(value, state)
        state = value if name.endswith("resid_post") else state
    assert {value.dtype.name for value in out.trace.values()} == {dtype}
    errors = errors_of(out.trace, expected)
    assert {
        name: error for name, error in errors.items() if not error < GATES[dtype]
    } == {}
    assert worst_token(out.logits, expected["logits"]) < GATES[dtype]


@pytest.mark.parametrize("case", CASES)
def test_sequences_in_a_row_pass_as_alone(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of an experiment share each product; their attention and positions do not mix."""
    monkeypatch.setattr(kernels, "QUERIES", 4)
    model = model_of(case)
    ids = np.random.default_rng(7).integers(0, model.config.vocab_size, (3, 11))
    stream = Stream(model, dict(enumerate(ids)), np.float64)
    for i in range(model.config.num_blocks):
        weights = model.block(i, np.float64)
        alone = {n: stream.through(h, weights) for n, h in stream.states.items()}
        first, *others = stream.states.values()
        row = stream.through(reduce(State.and_those_of, others, first), weights)
        for n, state in alone.items():
            for array, right in zip(row.sequence(n).arrays, state.arrays, strict=True):
                assert worst_token(array, right) <= GATES["float64"]
        stream.advance(alone)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_without_a_trace_the_logits_are_the_same(case: str) -> None:
    ids, _ = expected_of(case)
    traced, plain = (
        forward(model_of(case), ids, trace=trace) for trace in (True, False)
    )
    assert plain.trace == {}
    assert plain.logits.dtype == np.float32
    assert bits(plain.logits) == bits(traced.logits) == bits(traced.trace["logits"])


@pytest.mark.parametrize(
    "ids", [[1, 5, 7], np.array([1, 5, 7], np.uint8), np.array([[1, 5, 7]], np.int32)]
)
def test_one_sequence_may_come_in_any_integer_form(ids: Any) -> None:
    expected = forward(model_of("llama"), np.array([[1, 5, 7]], np.int64)).logits
    np.testing.assert_array_equal(forward(model_of("llama"), ids).logits, expected)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_the_longest_sequence_is_allowed(case: str) -> None:
    config = model_of(case).config
    ids = np.arange(config.max_position_embeddings) % config.vocab_size
    assert forward(model_of(case), ids).logits.shape == (1, 64, config.vocab_size)


@pytest.mark.parametrize(
    ("ids", "problem", "remedy"),
    [
        ([[1.0, 2.0]], "dtype float64 and shape [1, 2]", "astype"),
        ([[True, False]], "dtype bool", "astype"),
        (["a", "b"], "token-ids ['a', 'b']", "change"),
        (np.zeros((1, 0), np.int64), "shape [1, 0]", "astype"),
        (3, "shape []", "astype"),
        (np.zeros((1, 1, 2), np.int64), "shape [1, 1, 2]", "astype"),
        (
            [[0, 264, 300]],
            "2 token ids are outside the vocabulary; the first is 264",
            "tokenizer",
        ),
        ([[0, 1], [2, -1]], "the first is -1 (sample 1, position 1)", "tokenizer"),
        (np.array([2**63], np.uint64), "the first is 9223372036854775808", "tokenizer"),
        (np.zeros(65, np.int64), "a sequence of 65 tokens", "--seq-len 64"),
    ],
)
def test_bad_ids_are_refused(ids: Any, problem: str, remedy: str) -> None:
    refusal_of(forward, model_of("llama"), ids, says=problem, remedy=remedy)
