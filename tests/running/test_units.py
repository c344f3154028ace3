"""The same numbers on any number of threads, and in any memory."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import bits, layouts, model_of
from hypothesis import given
from hypothesis import strategies as st

from refimpl import Noise, Probes, Request, Scores, evaluate, score
from refimpl.loading.samples import random_tokens
from refimpl.loading.text import text_windows
from refimpl.running.settings import Settings
from refimpl.scoring.base_signals import signals_of
from refimpl.scoring.experiment import SummedSquares
from refimpl.scoring.measurements import Result

LLAMA = FIXTURES / "llama"
PLANS = {
    "gaussian": (
        Noise(eta=(0.01, 0.5), draws=2, sink="exclude"),
        Request("alphapruning", correct=None),
    ),
    "pruning": (Probes(), Request("owl", correct="divergence")),
    "three of four": (Probes(precision=1.0), Request(correct="divergence")),
}


PLACES: tuple[dict[str, Any], ...] = (
    {"threads": 1},
    {"threads": 3},
    {"memory": "100K"},
)


def scored(case: str, plan: str, **options: Any) -> Scores:
    model = model_of(case)
    tokens = random_tokens(model.config.vocab_size, 4, 12)
    return score(model, tokens, *PLANS[plan], **options)


@cache
def scored_here(case: str, plan: str) -> Any:
    return bits(scored(case, plan))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(
    "case", layouts(["llama", "gemma2", "gpt2", "opt"], ("llama", "gemma2"))
)
def test_scores(case: str, plan: str, place: dict[str, Any]) -> None:
    assert bits(scored(case, plan, **place)) == scored_here(case, plan)


@pytest.mark.parametrize("threads", [1, 3])
def test_signals_and_evaluations(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.evaluation.likelihood._BATCH", 40)
    model = model_of("llama")
    tokens = random_tokens(model.config.vocab_size, 3, 12)
    windows = text_windows(FIXTURES / "text.txt", LLAMA / "tokenizer.json", 20, 12)
    requests = [Request(base) for base in ("owl", "dlp", "alphapruning", "lsa")]
    results = [
        [
            signals_of(model, request, tokens, Settings(threads=n))
            for request in requests
        ]
        + [evaluate(model, windows, threads=n)]
        for n in (None, threads)
    ]
    assert bits(results[0]) == bits(results[1])


@given(st.permutations(range(7)))
def test_squares_are_added_in_the_order_of_the_sequences(order: list[int]) -> None:
    terms, summed = (
        np.array([1e16, 1.0, -1e16, 3.0, 1e-9, 7.0, -1.0]),
        SummedSquares(({},)),
    )
    for number in order:
        summed.note(Result({}, {number: ({"q": terms[number : number + 1].copy()},)}))
    assert summed.total[0]["q"].tolist() == [np.add.accumulate(terms)[-1]]
