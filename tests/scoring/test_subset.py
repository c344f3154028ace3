"""Fewer blocks per sequence: which ones, that nothing is biased, and what is done with the rest."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import APART, bits, model_of
from hypothesis import given
from hypothesis import strategies as st
from program import ran, refused

from refimpl import Noise, Probes, RefimplError, Request, Scores, allocate, forward, score
from refimpl.allocation.scores_json import document, read_scores
from refimpl.method.absorption import absorption_coefficient
from refimpl.pruners.decision import PrunerOptions
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import experiment
from refimpl.scoring.measurements import Measurements, addresses, chosen_blocks
from refimpl.scoring.pruned_alone import PrunedBlocks
from refimpl.show.table import table
from refimpl.storage.files import write_json
from refimpl.tokens import random_tokens

LLAMA = FIXTURES / "llama"
SEEDS = 4000


# The choice


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Sequences, draws, blocks and a subset that are enough for each other."""
    blocks = draw(st.integers(1, 40))
    sequences, draws = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    least = -(-blocks // (sequences * draws))
    return sequences, draws, blocks, draw(st.integers(least, blocks))


@given(sizes(), st.integers(0, 2**40))
def test_the_choice_is_balanced(size: tuple[int, int, int, int], seed: int) -> None:
    sequences, draws, blocks, subset = size
    chosen = chosen_blocks(*size, seed)
    assert chosen.shape == (sequences, draws, blocks)
    assert (chosen.sum(axis=-1) == subset).all()
    having = chosen.sum(axis=(0, 1))
    assert having.min() > 0
    assert np.ptp(having) <= 1
    # In different sequences as long as there are any, and only then in other draws of the same.
    assert (chosen.any(axis=1).sum(axis=0) == np.minimum(having, sequences)).all()
    # The j-th block of every pair lies in the j-th part of the depth, up to a block at its edges.
    part = blocks / subset
    for row in chosen.reshape(-1, blocks):
        for j, block in enumerate(np.flatnonzero(row)):
            assert j * part - 1 < block < (j + 1) * part
    np.testing.assert_array_equal(chosen_blocks(*size, seed), chosen)


def test_all_blocks_are_a_subset_too() -> None:
    assert chosen_blocks(2, 3, 5, 5, 0).all()
    assert chosen_blocks(2, 3, 5, None, 0).all()
    assert addresses(2, 5, Noise(subset=5)) == addresses(2, 5, Noise())


@pytest.mark.parametrize("size", [(4, 1, 7, 3), (3, 2, 7, 3), (2, 3, 10, 4), (5, 1, 5, 1)])
def test_the_mean_over_many_choices_is_the_whole_mean(size: tuple[int, int, int, int]) -> None:
    sequences, draws, blocks, _ = size
    ratios = np.random.default_rng(1).lognormal(size=(sequences, draws, blocks))
    whole, _ = absorption_coefficient(ratios)
    each = np.array(
        [
            absorption_coefficient(np.where(chosen_blocks(*size, seed), ratios, np.nan))[0]
            for seed in range(SEEDS)
        ]
    )
    error = each.std(axis=0, ddof=1) / np.sqrt(SEEDS)
    assert (np.abs(each.mean(axis=0) - whole) < 4 * error + 1e-12).all()
    assert (error > 0).all()  # else nothing was seen


def test_every_pair_gets_every_block_as_often() -> None:
    size = (3, 2, 7, 3)
    often = np.mean([chosen_blocks(*size, seed) for seed in range(SEEDS)], axis=0)
    share = 3 / 7
    assert np.abs(often - share).max() < 4.5 * np.sqrt(share * (1 - share) / SEEDS)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((2, 1, 30, 14), ("3 sequences", "--subset 15", "each of the 30 blocks")),
        ((1, 3, 4, 1), ("4 sequences", "--subset 2")),
        ((8, 1, 30, 31), ("31 blocks of 30", "1 to 30")),
    ],
)
def test_a_choice_that_is_none(size: tuple[int, int, int, int], words: tuple[str, ...]) -> None:
    with pytest.raises(RefimplError) as refused:
        chosen_blocks(*size, 0)
    assert all(word in str(refused.value) for word in words)


def test_too_few_sequences_are_refused_before_anything_long() -> None:
    seen: list[float] = []
    with pytest.raises(RefimplError, match="--subset 2"):
        score(
            model_of("llama"),
            random_tokens(264, 2, 8),
            Probes(subset=1),
            progress=lambda done, total: seen.append(done),
        )
    assert not seen


# The experiment on it


PLANS = {
    "gaussian": Noise(eta=(0.01, 0.5), draws=2, sink="exclude", subset=2),
    "pruning": Probes(subset=2),
}


def measured(plan: Noise | Probes, sequences: int = 3) -> Measurements:
    """The experiment alone; pruned to a half at all inputs alike."""
    model = model_of("llama")
    shapes = model.config.linears[0]
    ones = {name: np.ones(width) for name, (_, width) in shapes.items()}
    halves = model.config.linear_sizes[None] // 2
    pruning = isinstance(plan, Probes)
    linears = model.config.linears
    pruned = PrunedBlocks(linears, halves, PrunerOptions(), (ones,) * 4) if pruning else None
    ids = random_tokens(264, sequences, 9).ids
    with Settings(np.float64, threads=2, memory=1 << 20).open() as resources:
        return experiment(model, ids, plan, resources, pruned, divergence=pruning)


def chosen_of(plan: Noise | Probes) -> tuple[Measurements, Measurements, Any]:
    """What is measured with the subset and without, and which states, [N, R, L], the subset has."""
    chosen = chosen_blocks(3, plan.draws, 4, plan.subset, plan.seed)
    assert not chosen.all()
    some, every = measured(plan), measured(replace(plan, subset=None))
    for name in ("drift", "alignment", "ratios"):
        found, of = getattr(some, name), chosen[..., None] if name != "ratios" else chosen
        expected = np.where(of, getattr(every, name), np.nan)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)
    return some, every, chosen


@pytest.mark.parametrize("kind", PLANS)
def test_what_is_perturbed_is_what_it_is_without_a_subset(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit where each state passes alone: then its products are the same."""
    monkeypatch.setattr("refimpl.scoring.grouping.ROWS", 1)
    some, every, chosen = chosen_of(PLANS[kind])
    for name in ("ratios", "drift", "alignment", "divergence"):
        found, whole = getattr(some, name), getattr(every, name)
        assert (found is None) == (whole is None)
        if found is not None:
            np.testing.assert_array_equal(found[:, chosen], whole[:, chosen], err_msg=name)


@pytest.mark.parametrize("kind", PLANS)
def test_in_stacks_of_other_sizes_it_agrees_within_the_gate(kind: str) -> None:
    """The bounds of docs/explanation/numerics.md, of a sequence's norm: their products differ."""
    plan = replace(PLANS[kind], norm="sequence")
    some, every, chosen = chosen_of(plan)
    drift, ratios = every.drift[:, chosen], every.ratios[:, chosen]
    first = np.take_along_axis(drift, np.nonzero(chosen)[-1][None, :, None], -1)[..., 0]
    bounds = {"drift": APART * (1 + drift), "alignment": np.full_like(drift, APART)}
    bounds["ratios"] = APART * (1 / first + ratios)
    if every.divergence is not None:
        logits = forward(model_of("llama"), random_tokens(264, 3, 9).ids, dtype="f8").logits
        length = np.linalg.norm(logits, axis=-1).max()
        bounds["divergence"] = APART * length * np.sqrt(2 * every.divergence[:, chosen])
    for name, bound in bounds.items():
        off = np.abs(getattr(some, name) - getattr(every, name))[:, chosen]
        assert (np.isnan(off) | (off <= bound)).all(), name
    for mine, whole in zip(some.squares, every.squares, strict=True):  # of clean states
        for name, sums in whole.items():
            np.testing.assert_array_equal(mine[name], sums)


def scored(plan: Noise | Probes, **options: Any) -> Scores:
    request = Request("owl", correct="divergence" if isinstance(plan, Probes) else "absorption")
    return score(model_of("llama"), random_tokens(264, 3, 9), plan, request, **options)


@pytest.mark.parametrize("kind", PLANS)
def test_all_of_the_blocks_are_the_same_as_no_subset(kind: str) -> None:
    plan = PLANS[kind]
    all_of_them = scored(replace(plan, subset=4))
    assert bits(replace(all_of_them, plan=plan)) == bits(
        replace(scored(replace(plan, subset=None)), plan=plan)
    )


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("options", [{"executor": "processes"}, {"memory": "10K"}, {"threads": 1}])
def test_nothing_depends_on_where_it_runs(
    kind: str, options: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    if name := options.get("executor"):
        options = {"executor": request.getfixturevalue(name)}
    assert bits(scored(PLANS[kind], **options)) == bits(scored(PLANS[kind]))


@pytest.fixture
def many_sinks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.method.perturbation.SINK_FACTOR", 1.02)


@pytest.mark.usefixtures("many_sinks")
def test_sinks_are_counted_once_and_where_the_first_draw_has_not_the_block() -> None:
    plan = Noise(eta=(0.01, 0.02), draws=4, sink="exclude", subset=2)
    chosen = chosen_blocks(2, 4, 4, 2, 0)
    assert chosen.any(axis=1).all()
    assert not chosen[:, 0].all()
    found, whole = measured(plan, 2), measured(replace(plan, subset=None), 2)
    assert found.sinks.tolist() == whole.sinks.tolist()
    assert whole.sinks.min() > 0


# What is written and shown


def written(path: Path, scores: Scores) -> dict[str, Any]:
    content = document(scores, (allocate(scores),))
    write_json(path, content)
    return content


def test_the_document_says_so_and_comes_back(tmp_path: Path) -> None:
    plan, path = Noise(subset=2), tmp_path / "scores.json"
    scores = score(model_of("llama"), random_tokens(264, 3, 9), plan)  # 6 over 4 blocks
    content = written(path, scores)
    (found,) = content["scores"]["sweep"]
    assert content["scores"]["plan"]["subset"] == 2
    having = chosen_blocks(3, 1, 4, 2, 0).sum(axis=(0, 1)).tolist()
    assert sorted(having) == [1, 1, 2, 2]
    assert None not in found["coefficient"]
    assert [x is None for x in found["stderr"]] == [number < 2 for number in having]
    assert read_scores(path).plan == plan
    shown = table(scores, (allocate(scores),), verbose=True)
    assert "2 of 4 blocks per sample and draw" in " ".join(shown.split())
    assert "no standard error where a block was perturbed in one sample only" in shown


@pytest.mark.parametrize("words", [("--eta", 0.01), ("--variant", "sink=exclude", "--draws", 2)])
def test_the_command_does_it_with_either_runtime(words: tuple[object, ...]) -> None:
    pytest.importorskip("onnxruntime")
    ours, theirs = (
        json.loads(
            ran(
                *("score", LLAMA, "--samples", 3, "--seq-len", 9, "--subset", 2),
                *("--dtype", "float64", "--runtime", runtime, "--json", *words),
            )
        )
        for runtime in ("numpy", "onnxruntime")
    )
    mine, other = (x["scores"]["sweep"][0] for x in (ours, theirs))
    for name in ("coefficient", "stderr"):
        pairs = [np.array(x[name], float) for x in (mine, other)]
        np.testing.assert_allclose(*pairs, rtol=1e-9)
    assert mine["left_out"] == other["left_out"]
    assert ours["scores"]["sinks"] == theirs["scores"]["sinks"]


def test_explain_does_without_it() -> None:
    assert "--subset" in refused("explain", LLAMA, "--subset", 2)


@pytest.mark.usefixtures("many_sinks")
def test_sinks_of_both_runtimes_are_of_the_sequences_that_have_the_block() -> None:
    pytest.importorskip("onnxruntime")
    from refimpl.onnx.runtime import on_onnxruntime

    plan, tokens = Noise(sink="exclude", subset=1, draws=2), random_tokens(264, 3, 12)
    scored = partial(score, model_of("llama"), tokens, dtype=np.float64)
    ours, whole = scored(plan), scored(replace(plan, subset=None))
    theirs = scored(plan, runtime=on_onnxruntime(plan, "cpu"))
    assert ours.sinks.tolist() == theirs.sinks.tolist()
    assert (ours.sinks > 0).all()
    assert (ours.sinks < whole.sinks).any()
