"""Bases and pruners of one's own: what a record says is all that the program needs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import bits, model_of
from program import run
from refusals import refusal_of

from refimpl import (
    Base,
    Pattern,
    Pruner,
    PrunerOptions,
    Request,
    allocate,
    prune,
    read_model,
    score,
)
from refimpl.allocation.scores_json import read_scores, scores_document
from refimpl.bases.base import BlockInputs, bases
from refimpl.explanation.explain import explain
from refimpl.loading.samples import Tokens, random_tokens
from refimpl.model.ops import Array
from refimpl.pruners.pruner import LinearInputs, pruners
from refimpl.running.outputs import json_text, write_text
from refimpl.scoring.base_signals import signals_of

LLAMA = model_of("llama")
TOKENS = random_tokens(264, 2, 16)
NEEDY = [name for name, base in bases().items() if base.needs is not None]


def own(name: str) -> Base:
    """A base of this package under a name that nothing knows."""
    return replace(bases()[name], name="one's own")


@pytest.mark.parametrize("name", NEEDY)
def test_a_base_of_ones_own_is_measured_as_one_of_the_package(
    name: str, tmp_path: Path
) -> None:
    base, plain = own(name), Request(name, sparsity=0.6, correct=None)
    scores = score(LLAMA, TOKENS, bases=[base], threads=2)
    assert scores.signals.keys() == {base.name}
    theirs = score(LLAMA, TOKENS, request=plain)
    assert bits(scores.signals[base.name]) == bits(theirs.signals[name])
    found, expected = allocate(scores, base=base, sparsity=0.6), allocate(theirs, plain)
    np.testing.assert_array_equal(found.linear_pruned, expected.linear_pruned)
    path = tmp_path / "scores.json"
    write_text(path, json_text(scores_document(scores, [found])))
    assert bits(read_scores(path).signals) == bits(scores.signals)
    text = explain(LLAMA, TOKENS, request=Request(base, correct=None)).figure
    np.testing.assert_allclose(
        text("signals", base.symbol), scores.signals[base.name].main, rtol=1e-5
    )


@pytest.mark.parametrize("name", NEEDY)
def test_its_signal_alone_and_at_its_own_pruning(name: str) -> None:
    base = own(name)
    alone = signals_of(LLAMA, Request(base, correct=None), TOKENS)
    assert bits(alone) == {
        base.name: bits(signals_of(LLAMA, Request(name, correct=None), TOKENS)[name])
    }
    request = Request(base, correct="divergence")
    scores = score(LLAMA, TOKENS, request=request)
    theirs = score(LLAMA, TOKENS, request=Request(name, correct="divergence"))
    assert scores.pruned_at is not None
    assert theirs.pruned_at is not None
    assert scores.pruned_at.base == base.name
    np.testing.assert_array_equal(
        scores.pruned_at.linear_pruned, theirs.pruned_at.linear_pruned
    )
    np.testing.assert_array_equal(
        allocate(scores, request).linear_pruned,
        allocate(theirs, Request(name, correct="divergence")).linear_pruned,
    )


def test_what_cannot_be_measured_is_refused() -> None:
    refusal_of(score, LLAMA, TOKENS, bases=["owls"], says="base 'owls' is neither")


@pytest.mark.parametrize("name", pruners())
def test_a_pruner_of_ones_own_prunes_as_one_of_the_package(
    name: str, tmp_path: Path
) -> None:
    record = replace(pruners()[name], name="one's own")
    for chosen, folder in ((record, "mine"), (name, "theirs")):
        pruner = PrunerOptions(chosen, 0.02, 3)
        prune(LLAMA, tmp_path / folder, Pattern(2, 4), pruner, TOKENS, threads=2)
    mine, theirs = (tmp_path / x / "model.safetensors" for x in ("mine", "theirs"))
    assert mine.read_bytes() == theirs.read_bytes()
    assert '"method": "one\'s own"' in (tmp_path / "mine" / "pruning.json").read_text()


def test_a_record_alone_is_a_pruner(tmp_path: Path) -> None:
    record = Pruner(
        "sum", "sum", "", score=lambda linear: np.asarray(linear.weight, np.float64)
    )
    pruned = prune(LLAMA, tmp_path / "out", allocate(score(LLAMA, TOKENS)), record)
    assert pruned.total_pruned == allocate(score(LLAMA, TOKENS)).total_pruned
    name = "blocks.0.q_proj.weight"
    dense, new = (
        model.weights[name].read(np.float64)
        for model in (LLAMA, read_model(tmp_path / "out"))
    )
    assert (
        dense[new == 0].max() <= dense[new != 0].min()
    )  # the lowest of the linear went
    peer = allocate(score(LLAMA, TOKENS), compat="peer")
    refusal_of(prune, LLAMA, tmp_path / "x", peer, record, says="sum with compat peer")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a list": ({"score": lambda x: [[1.0]]}, "score is list"),
    "another shape": ({"score": lambda x: np.ones((2, 2))}, "score is float64 [2, 2]"),
    "texts": ({"score": lambda x: np.full(x.weight.shape, "a")}, "score is str32"),
    "NaN": ({"score": lambda x: np.full(x.weight.shape, np.nan)}, "score is NaN"),
    "no decision": ({"keep": lambda score, count: score}, "keep is float"),
    "another count": ({"keep": lambda score, count: score > 2}, "weights removed"),
    "no weights": (
        {"compensate": lambda x, _: (np.ones(x.weight.shape, bool), None)},
        "new weights is NoneType",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_pruner_returns_is_checked(name: str, tmp_path: Path) -> None:
    functions, says = WRONG[name]
    functions = {"score": lambda linear: np.abs(linear.weight)} | functions
    record, targets = (
        Pruner("mine", "mine", "", **functions),
        allocate(score(LLAMA, TOKENS)),
    )
    error = refusal_of(prune, LLAMA, tmp_path / "out", targets, record, says=says)
    assert "pruner 'mine'" in error.problem
    assert not [*tmp_path.iterdir()]


def test_a_pruner_cannot_write_into_what_it_gets(tmp_path: Path) -> None:
    def spoil(linear: LinearInputs) -> Any:
        for array in (linear.weight, linear.sums):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        return np.abs(linear.weight)

    for needs in ("squares", "products"):
        record = Pruner("mine", "mine", "", score=spoil, needs=needs)
        prune(LLAMA, tmp_path / needs, Pattern(2, 4), record, TOKENS)


def test_names_of_the_command_line_are_those_of_the_records() -> None:
    said = run(
        "prune", "fixtures/llama", "-o", "x", "--sparsity", "0.5", "--pruner", "wnda"
    ).err
    assert all(name in said for name in pruners())
    said = run("score", "fixtures/llama", "--base", "owls").err
    assert all(name in said for name in bases())


def test_the_inputs_of_a_signal_hold_what_its_base_needs() -> None:
    seen = dict[str, BlockInputs]()

    def signal(block: BlockInputs, options: Mapping[str, Any]) -> Mapping[str, float]:
        seen[needs] = block
        return {"x": 1.0}

    for needs in ("weights", "squares", "products"):
        base: Any = Base(
            needs, needs, "", lambda asked: asked.signal, needs=needs, signal=signal
        )
        score(LLAMA, Tokens(TOKENS.ids, "", "ids"), bases=[base])
    width = LLAMA.config.hidden_size
    assert not seen["weights"].sums
    assert seen["squares"].sums["q_proj"].shape == (width,)
    assert seen["products"].sums["q_proj"].shape == (width, width)
    assert seen["products"].sequences == 2
    for block in seen.values():
        assert block.weight("q_proj").shape == block.shapes["q_proj"]
        assert block.index == LLAMA.config.num_blocks - 1


def base_of(signal: Any, needs: Any = "squares", allocation: Any = None) -> Base:
    return Base(
        "mine",
        "mine",
        "",
        allocation or (lambda asked: asked.signal),
        needs=needs,
        signal=signal,
    )


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        [1.0],
        1.0,
        {"x": "y"},
        {"x": [1.0]},
        {"x": np.nan},
        {"x": [[1.0] * 7]},
        {1: 1.0},
        None,
    ],
)
def test_what_a_signal_returns_is_checked(numbers: Any) -> None:
    base = base_of(lambda block, options: numbers)
    refusal_of(score, LLAMA, TOKENS, bases=[base], says="the signal of base mine")


@pytest.mark.parametrize(
    "sparsity",
    [None, "x", [0.5], [0.5] * 3, np.full((4, 2), 0.5), [np.nan] * 4, [1j] * 4],
)
def test_what_an_allocation_returns_is_checked(sparsity: Any) -> None:
    base = base_of(None, None, lambda asked: sparsity)
    refusal_of(
        allocate, score(LLAMA, TOKENS), base=base, says="the allocation of base mine"
    )


@pytest.mark.parametrize("needs", ["weights", "squares", "products"])
def test_a_base_cannot_change_what_it_gets(needs: str) -> None:
    def signal(block: BlockInputs, options: Any) -> dict[str, float]:
        attacks = [lambda: block.shapes.clear(), lambda: options.update(x=1)]  # type: ignore[attr-defined]
        attacks += [lambda x=x: x.fill(0) for x in block.sums.values()]
        if needs != "weights":  # which are read anew for every base
            attacks.append(lambda: block.weight("q_proj").fill(0))
        for attack in attacks:
            with pytest.raises((AttributeError, ValueError)):
                attack()
        return {"x": 1.0}

    def allocation(asked: Any) -> Array:
        for array in (asked.signal, asked.sizes):
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
        with pytest.raises(AttributeError):
            asked.linears[0].clear()
        return np.full(len(asked.linears), 0.7)

    scores = score(LLAMA, TOKENS, bases=["owl", base_of(signal, needs, allocation)])
    np.testing.assert_array_equal(
        scores.signals["owl"].main, score(LLAMA, TOKENS).signals["owl"].main
    )
    allocate(scores, base=base_of(signal, needs, allocation), sparsity=0.7)


def test_bases_that_call_block_run_do_not_wait_for_each_other() -> None:
    def signal(block: BlockInputs, options: Any) -> dict[str, float]:
        return {"x": sum(block.run([lambda: 1.0, lambda: 2.0]))}

    both = [replace(base_of(signal), name=name) for name in ("one", "other", "third")]
    assert (
        score(LLAMA, TOKENS, bases=both, threads=2).signals["one"].main.tolist()
        == [3.0] * 4
    )
