"""Requests, allocations from scores, and what the long computations run on."""

import json
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
from gates import CASES, model_of
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from tables import cases

from refimpl import Noise, Probes, Request, Scores, allocate, score
from refimpl.allocation.allocate import base_only
from refimpl.allocation.request import read_custom
from refimpl.allocation.scores import PrunedAt
from refimpl.allocation.scores_json import read_scores, scores_document
from refimpl.bases.alphapruning import alphapruning
from refimpl.loading.samples import random_tokens
from refimpl.method.projection import project
from refimpl.running.outputs import json_text, write_text

Floats = npt.NDArray[np.float64]


@cache
def scores_of(case: str) -> Scores:
    """Scores of a fixture with every signal; every fixture's last block amplifies nothing."""
    model = model_of(case)
    tokens = random_tokens(model.config.vocab_size, 2, 9)
    return score(
        model, tokens, Noise(eta=(0.01, 0.5)), Request("alphapruning", correct=None)
    )


def measured_by_pruning(scores: Scores, wanted: Request) -> Scores:
    """The same scores, as if they had been measured by pruning at the base of a request."""
    exact = replace(wanted, compat="exact", correct=None)
    counts = base_only(scores.signals, exact, scores.linears).linear_pruned
    found = replace(
        scores.sweep[0], eta=None, divergence=np.linspace(0, 1, scores.num_blocks) ** 2
    )
    at = PrunedAt(wanted.record.name, wanted.options, wanted.sparsity, counts)
    return replace(scores, plan=Probes(), sweep=(found,), pruned_at=at)


BASES: list[tuple[str, dict[str, Any]]] = [
    ("uniform", {}),
    ("owl", {"lam": 0.2}),
    ("dlp", {}),
    ("atp", {}),
    ("custom", {}),
    ("alphapruning", {"epsilon": 0.9}),
]


@st.composite
def requests(draw: st.DrawFn, scores: Scores, folder: Path) -> Request:
    """Any request that can be met with these scores."""
    fraction = st.one_of(st.floats(0, 1), st.integers(0, 8).map(lambda n: n / 8))
    lo, sparsity, hi = sorted(draw(st.tuples(fraction, fraction, fraction)))
    if draw(st.booleans()):
        lo, hi = 0.0, 1.0
    base, options = draw(st.sampled_from(BASES))
    if base == "atp":
        reach = 2 * min(sparsity, 1 - sparsity) / max(scores.num_blocks - 1, 1)
        steep = draw(st.floats(-0.999, 0.999)) * min(reach, 1)
        options = {"beta": steep if reach > 1e-9 else 0.0}
    if base == "custom":
        random = np.random.default_rng(draw(st.integers(0, 2**32)))
        sparsity_of = random.random(scores.num_blocks).tolist()
        if draw(st.booleans()):  # blocks may differ in their linears
            sparsity_of = [
                random.random(len(block)).tolist() for block in scores.linears
            ]
        path = folder / "any.json"
        path.write_text(json.dumps(sparsity_of))
        base = str(path)
    correct = draw(st.sampled_from([None, "absorption", "divergence"]))
    strength = draw(st.one_of(st.just(0.0), st.floats(-2, 2)))
    return Request(
        base, options, sparsity, correct, strength, draw(st.floats(0, 1)), lo, hi
    )


@given(st.sampled_from(CASES), st.data())
def test_the_budget_is_met_to_the_weight(
    folder: Path, case: str, data: st.DataObject
) -> None:
    scores = scores_of(case)
    wanted = data.draw(requests(scores, folder))
    if wanted.correct == "divergence":
        scores = measured_by_pruning(scores, wanted)
    found = allocate(scores, wanted)
    sizes = scores.linear_sizes
    assert found.total_weights == model_of(case).config.block_sizes.sum()
    assert found.total_pruned == round(wanted.sparsity * found.total_weights)
    assert found.total_pruned == found.num_pruned.sum() == found.linear_pruned.sum()
    assert found.linear_pruned.dtype.kind == "i"
    assert (found.linear_pruned >= 0).all()
    assert (found.linear_pruned <= sizes).all()
    assert found.linear_sparsity[sizes > 0].min() >= wanted.lo
    assert found.linear_sparsity.max() <= wanted.hi
    # No unit is more than one weight off what its fraction says, and no linear off its share.
    file = wanted.file
    by_linear = file is not None and isinstance(json.loads(file.read_text())[0], list)
    if by_linear:
        asked = found.linear_sparsity * sizes
        assert np.abs(found.linear_pruned - asked).max() < 1
    else:
        asked = found.linear_sparsity[:, 0] * sizes.sum(axis=1)
        assert np.abs(found.num_pruned - asked).max() < 1
        fair = found.num_pruned[:, None] * sizes / sizes.sum(axis=1, keepdims=True)
        assert np.abs(found.linear_pruned - fair).max() < 1
    for sparsity in (found.base_sparsity, found.corrected_sparsity):
        share = sizes.sum(axis=1) / found.total_weights
        assert sparsity @ share == pytest.approx(wanted.sparsity, abs=1e-12)
    if wanted.correct is None or wanted.strength == 0:
        assert found.corrected_sparsity.tobytes() == found.base_sparsity.tobytes()


@pytest.mark.parametrize("case", ["llama", "gemma3"])
@pytest.mark.parametrize("correct", ["absorption", "divergence"])
def test_corrections_use_what_they_name(case: str, correct: Any) -> None:
    wanted = Request("alphapruning", {"epsilon": 0.1}, 0.5, correct, 0.07, 0.05)
    scores = scores_of(case)
    if correct == "divergence":
        scores = measured_by_pruning(scores, wanted)
    found = scores.sweep[0]
    v = np.log(found.coefficient)
    if correct == "divergence":
        assert found.divergence is not None
        known = found.divergence > 0
        log_a = np.log(np.where(known, found.divergence, 1))
        v = np.where(known, log_a - log_a.sum() / known.sum(), 0)
    u = np.clip(v, -np.log(3), np.log(3))
    units, sizes = (
        scores.signals["alphapruning"].main.mean(axis=1),
        scores.linear_sizes.sum(axis=1),
    )
    base = alphapruning(units, sizes, 0.5, 0.1)
    c = np.clip(-0.07 * (u - u.mean()), -0.05, 0.05)
    expected = project(base + c, sizes, 0.5)
    allocation = allocate(scores, wanted)
    by_linear = expected[:, None] + 0 * allocation.linear_sparsity
    np.testing.assert_allclose(
        allocation.linear_sparsity, by_linear, rtol=0, atol=1e-13
    )
    np.testing.assert_allclose(
        allocation.corrected_sparsity, expected, rtol=0, atol=1e-13
    )
    np.testing.assert_array_equal(allocation.clipped, np.abs(v) >= np.log(3))
    assert np.ptp(expected - base) > 0.03  # there was something to correct


def test_every_eta_of_a_sweep_has_its_own_correction() -> None:
    scores = scores_of("llama")
    first, second = (
        allocate(
            scores, base="uniform", correct="absorption", which=which
        ).corrected_sparsity
        for which in (0, 1)
    )
    assert (first != second).all()
    alone = replace(scores, sweep=scores.sweep[1:])
    made = allocate(alone, base="uniform", correct="absorption").corrected_sparsity
    np.testing.assert_array_equal(made, second)
    for which in (2, 9, -1):
        refusal_of(allocate, scores, which=which, says=f"which {which}")


MADE_FOR = Request("owl", {"lam": 0.1}, 0.6, "divergence", lo=0.1)


@cache
def made_for(kind: str) -> Scores:
    """Scores made for a request that differs from the default in every way; read from a file."""
    model, tokens = model_of("llama"), random_tokens(264, 2, 8)
    scores = score(model, tokens, request=MADE_FOR, threads=1)
    if kind == "read":
        with tempfile.TemporaryDirectory() as folder:
            write_text(
                path := Path(folder, "s.json"),
                json_text(scores_document(scores, (allocate(scores),))),
            )
            return read_scores(str(path))
    return scores


@pytest.mark.parametrize("kind", ["scored", "read"])
def test_an_allocation_keeps_what_the_scores_were_made_for(kind: str) -> None:
    scores = made_for(kind)
    assert allocate(scores).request == MADE_FOR
    peer: dict[str, Any] = {"correct": None, "strength": "default", "compat": "peer"}
    for changes, expected in (
        ({"strength": 0.2}, replace(MADE_FOR, strength=0.2)),
        ({"base": "owl", "options": {"m": 5}}, MADE_FOR),
        ({"correct": "none"}, replace(MADE_FOR, correct=None, strength="default")),
        ({"correct": None}, replace(MADE_FOR, correct=None, strength="default")),
        ({"compat": "peer", "correct": None}, replace(MADE_FOR, **peer)),
        ({"compat": "peer"}, replace(MADE_FOR, **peer)),
    ):
        assert allocate(scores, **changes).request == expected
    assert allocate(scores, MADE_FOR, strength=0.2).request == replace(
        MADE_FOR, strength=0.2
    )
    # Not what blocks were pruned to; but of a base that is named, nothing is made of pruned blocks.
    asked = {
        "says": "these scores were measured by pruning at",
        "remedy": "--correct none",
    }
    refusal_of(allocate, scores, sparsity=0.49, **asked)
    refusal_of(allocate, scores, base="uniform", correct="divergence", **asked)
    assert allocate(scores, base="dlp").request == replace(
        MADE_FOR, base="dlp", options={}, correct=None, strength="default"
    )


def test_a_base_that_was_a_file_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("[0.5, 0.6, 0.7, 0.6]")
    request = Request(str(tmp_path / "mine.json"), sparsity=0.6)
    scores = score(
        model_of("llama"), random_tokens(264, 1, 8), request=request, threads=1
    )
    content = scores_document(scores, (allocate(scores),))
    assert content["scores"]["made_for"]["base"] == "mine.json"  # and not its folder
    write_text(tmp_path / "s.json", json_text(content))
    read = read_scores(tmp_path / "s.json")
    refusal_of(allocate, read, says="no base", remedy="--base FILE")
    assert (
        allocate(read, base=request.base).request == allocate(scores).request == request
    )


PEERS = st.sampled_from(["uniform", "owl", "dlp", "alphapruning"])


@given(st.sampled_from(CASES), PEERS, st.floats(0, 1))
def test_peers_truncate_and_restore_nothing(
    case: str, base: str, sparsity: float
) -> None:
    scores = scores_of(case)
    found = allocate(
        scores, Request(base, sparsity=sparsity, correct=None, compat="peer")
    )
    for i in range(scores.num_blocks):
        s = float(found.base_sparsity[i])
        assert found.corrected_sparsity[i] == s
        for j, (rows, columns) in enumerate(scores.linears[i].values()):
            assert found.linear_pruned[i, j] == rows * len(
                range(columns)[: int(columns * s)]
            )
    assert not found.clipped.any()


def test_peers_lose_weights_where_a_sparsity_exceeds_one() -> None:
    scores = scores_of("llama")
    found = allocate(
        scores, Request("alphapruning", sparsity=0.9, correct=None, compat="peer")
    )
    above = found.base_sparsity > 1
    assert above.any()
    assert (found.num_pruned[above] == scores.linear_sizes[0].sum()).all()
    assert found.total_pruned < 0.9 * found.total_weights
    exact = allocate(scores, Request("alphapruning", sparsity=0.9, correct=None))
    assert exact.base_sparsity.max() == 1
    assert exact.total_pruned == round(0.9 * exact.total_weights)


@pytest.mark.parametrize("per_linear", [False, True])
def test_custom_allocations(per_linear: bool, tmp_path: Path) -> None:
    scores = scores_of("llama")
    names = list(scores.linears[0])
    shape = (scores.num_blocks, len(names)) if per_linear else scores.num_blocks
    values = np.random.default_rng(0).random(shape)
    path = tmp_path / "list.json"
    path.write_text(json.dumps(values.tolist()))
    np.testing.assert_array_equal(read_custom(path, scores.linears), values)
    found = allocate(scores, base=str(path), sparsity=0.5, correct=None)
    sizes = scores.linear_sizes
    sizes = sizes if per_linear else sizes.sum(axis=1)
    expected = project(values.ravel(), sizes.ravel(), 0.5).reshape(values.shape)
    by_linear = (
        expected if per_linear else np.repeat(expected[:, None], len(names), axis=1)
    )
    np.testing.assert_array_equal(found.linear_sparsity, by_linear)


OTHERS = {
    "a.json": ["[]", "[[0.7, 0.7], [0.7, 0.7]]", "[0.7, 0.7, 0.7, [0.7]]", "[[[0.7]]]"]
}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        *cases("allocation", "custom_files"),
        *((name, text, "") for name, texts in OTHERS.items() for text in texts),
    ],
)
def test_custom_allocations_refused(
    name: str, text: Any, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    error = refusal_of(
        allocate, scores_of("llama"), base=str(path), says=f"{name}: not an alloc"
    )
    assert reason in error.problem
    assert "a list of 4 numbers (one per block) from 0 to 1, or" in error.expected


def test_a_custom_file_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "base.json"
    path.write_text("[0.7, 0.7, 0.7, 0.7]")
    wanted = Request(str(path))
    path.unlink()
    says = "neither a base allocation nor a file"
    refusal_of(allocate, scores_of("llama"), wanted, says=says)


@cache
def pruning_scores(correct: Any = None) -> Scores:
    wanted = Request("owl", sparsity=0.6, correct=correct)
    return score(model_of("llama"), random_tokens(264, 2, 9), Probes(), wanted)


@pytest.mark.parametrize(
    ("base", "options", "remedy"), cases("allocation", "unmeasured_signals")
)
@pytest.mark.parametrize("compat", ["exact", "peer"])
def test_signals_that_were_not_computed(
    base: str, options: Any, remedy: str, compat: Any
) -> None:
    wanted, says = (
        Request(base, options, correct=None, compat=compat),
        "not in these scores",
    )
    refusal_of(allocate, scores_of("llama"), wanted, says=says, remedy=remedy)


def test_noise_says_nothing_about_real_errors() -> None:
    says = {"says": "Gaussian noise", "remedy": "--perturbation pruning"}
    refusal_of(allocate, scores_of("llama"), correct="divergence", strength=0.1, **says)


OTHER, REMEDY = "these scores were measured by pruning", "run refimpl score again"


@pytest.mark.parametrize(
    ("wanted", "problem", "remedy"),
    [
        *(
            (x, OTHER, REMEDY)
            for x in (
                *(
                    {"sparsity": 0.61},
                    {"options": {"lam": 0.1}},
                    {"lo": 0.59},
                    {"hi": 0.61},
                ),
                *(
                    {"base": "uniform"},
                    {"base": "dlp"},
                    {"base": "atp", "options": {"beta": 0.01}},
                ),
            )
        ),
        (
            {"correct": "divergence"},
            "no divergence in these",
            "pruning --correct divergence",
        ),
        (
            {"base": "alphapruning"},
            "not in these scores",
            "alphapruning --base-option fit=peak",
        ),
    ],
)
def test_pruning_was_measured_at_one_allocation(
    wanted: Any, problem: str, remedy: str
) -> None:
    asked = {"base": "owl", "sparsity": 0.6, "correct": "absorption"}
    error = refusal_of(
        allocate, pruning_scores(), Request(**asked | wanted), says=problem
    )
    assert remedy in error.remedy
    assert problem != OTHER or "base owl, sparsity 0.6" in str(error)


@pytest.mark.parametrize("correct", [None, "absorption", "divergence"])
def test_pruning_scores_serve_every_correction_at_their_base(correct: Any) -> None:
    scores = pruning_scores("divergence")
    wanted = Request("owl", sparsity=0.6, correct=correct, strength=0.3)
    assert allocate(scores, wanted).total_pruned == round(0.6 * 4 * 7296)
    if correct is None:
        allocate(scores, replace(wanted, compat="peer"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lo": 0.8}, "sparsity 0.7 is infeasible with lo 0.8 and hi 1"),
        ({"hi": 0.6}, "sparsity 0.7 is infeasible with lo 0 and hi 0.6"),
        ({"lo": 0.8, "hi": 0.75}, "lo 0.8"),
        ({"base": "atp", "options": {"beta": 0.5}}, "beta 0.5"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused_before_the_long_part(
    changes: dict[str, Any], problem: str
) -> None:
    wanted, progress = Request(sparsity=0.7, **changes, correct=None), Mock()
    refusal_of(allocate, scores_of("llama"), wanted, says=problem)
    options: dict[str, Any] = {"request": wanted, "progress": progress}
    refusal_of(
        score, model_of("llama"), random_tokens(264, 2, 9), **options, says=problem
    )
    assert not progress.called


@pytest.mark.parametrize(("changes", "problem"), cases("allocation", "requests"))
def test_requests_refused(changes: dict[str, Any], problem: str) -> None:
    assert problem in refusal_of(Request, **changes).problem


def test_requests_are_filled_in() -> None:
    assert (Request().correct, Request().strength) == ("divergence", "measured")
    assert Request("owl").correct == "divergence"
    assert Request("owl", {"m": "3"}).options == {"m": 3.0, "lam": 0.08}
    assert Request("dlp").options == {"a": 0.15, "statistic": "mean"}
    assert Request("lsa", {"block": "64"}).options == {"beta": 0.15, "block": 64}
    alphas = {"epsilon": 0.3, "fit": "peak", "xmin": "shipped"}
    assert Request("alphapruning").options == alphas
