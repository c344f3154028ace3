"""`docs/tutorial/pico.py`: the same numbers as the package, in one file of at most 270 lines."""

import ast
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from safetensors.numpy import load_file
from threadpoolctl import threadpool_limits

import refimpl
from refimpl.loading.samples import Tokens, Windows, random_tokens
from refimpl.loading.text import text_tokens
from refimpl.method.equal_marginals import equal_marginals, growth
from refimpl.method.perturbation import RunningDivergence
from refimpl.method.projection import project
from refimpl.pruners.wanda import wanda_keep

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "pico.py"
PICO = SimpleNamespace(**runpy.run_path(str(PAGE)))
LLAMA, TOY = FIXTURES / "llama", FIXTURES / "toy"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """BLAS on one thread: small products of two threads wait for other programs."""
    with threadpool_limits(1, "blas"):
        yield


both = pytest.mark.parametrize("folder", [LLAMA, TOY], ids=["llama", "toy"])


def tokens_of(folder: Path, samples: int, length: int) -> Tokens:
    """Ids drawn at random; of the toy model, those of its text."""
    if folder == LLAMA:
        return random_tokens(264, samples, length, seed=7)
    return text_tokens(TOY / "calibration.txt", TOY / "tokenizer.json", samples, length)


def relative(found: Any, expected: Any) -> float:
    """The worst relative error of a row, by its norm."""
    a, b = (np.atleast_2d(np.asarray(x, np.float64)) for x in (found, expected))
    return float(np.max(np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)))


def test_it_is_short_and_needs_numpy_and_safetensors_only() -> None:
    source = PAGE.read_text("utf-8")
    assert len(source.splitlines()) <= 270
    assert max(map(len, source.splitlines())) <= 100
    imports = [
        n
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Import | ast.ImportFrom)
    ]
    modules = {
        n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports
    }
    outside = {str(name).split(".")[0] for name in modules} - set(
        sys.stdlib_module_names
    )
    assert outside == {"numpy", "safetensors"}


@both
@pytest.mark.parametrize("length", [1, 2, 33])
def test_every_step_of_the_forward_is_the_package_s(length: int, folder: Path) -> None:
    model, theirs = PICO.read(folder), refimpl.read_model(folder)
    ids = tokens_of(folder, 3, length).ids
    out = refimpl.forward(theirs, ids, trace=True, dtype=np.float64)
    h, compared = model.embed[ids], 0
    for i, w in enumerate(model.blocks):
        steps = PICO.block(h, w, model)
        for name in steps.keys() - {"attn_heads", "mlp_hidden"}:  # not part of a trace
            assert relative(steps[name], out.trace[f"blocks.{i}.{name}"]) < 1e-12, name
            compared += 1
        h = steps["resid_post"]
    assert compared == 11 * len(model.blocks)
    assert relative(PICO.forward(ids, model), out.logits) < 1e-12


@both
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_scores_allocation_and_masks_are_the_package_s(
    sparsity: float, folder: Path, tmp_path: Path
) -> None:
    model, theirs = PICO.read(folder), refimpl.read_model(folder)
    tokens = tokens_of(folder, 4, 24)
    wanted = refimpl.Request(base="owl", sparsity=sparsity, correct="absorption")
    scores = refimpl.score(theirs, tokens, request=wanted, dtype=np.float64)
    expected = refimpl.allocate(scores)

    r = PICO.absorption_coefficients(tokens.ids, model)
    assert relative(r, scores.sweep[0].coefficient) < 1e-12
    base = PICO.owl(tokens.ids, model, sparsity)
    s, per_linear = PICO.allocation(base + PICO.correction(r), model, sparsity)
    assert relative(s, expected.corrected_sparsity) < 1e-12
    assert per_linear == expected.linear_pruned.tolist()

    refimpl.prune(theirs, tmp_path / "out", expected, tokens=tokens, dtype=np.float64)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for i, w in enumerate(PICO.pruned(tokens.ids, model, per_linear).blocks):
        for name in PICO.READS:
            part = (
                "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
            )
            weight = stored[f"model.layers.{i}.{part}.{name}.weight"]
            np.testing.assert_array_equal(w[name] != 0, weight != 0)


def test_what_most_blocks_clip_is_on_the_budget_too() -> None:
    model = PICO.read(LLAMA)
    s, per_linear = PICO.allocation(np.array([-0.2, 0.3, 0.9, 1.4]), model, 0.7)
    sizes = [sum(w[x].size for x in PICO.READS) for w in model.blocks]
    exact = project([-0.2, 0.3, 0.9, 1.4], sizes, 0.7)
    np.testing.assert_allclose(s, exact, rtol=0, atol=1e-12)
    assert sum(map(sum, per_linear)) == round(0.7 * sum(sizes))


def test_ties_and_odd_counts_go_as_in_the_package() -> None:
    rng = np.random.default_rng(0)
    for count in (0, 1, 5, 6, 17, 23, 24):
        score = rng.integers(0, 3, (4, 6)).astype(float)
        keep = wanda_keep(score, count)
        np.testing.assert_array_equal(PICO.wanda_keep(score, count), keep)


@both
def test_perplexity_and_divergence_are_the_package_s(folder: Path) -> None:
    model, theirs = PICO.read(folder), refimpl.read_model(folder)
    ids = tokens_of(folder, 2, 9).ids
    windows = Windows(tuple(ids), None, 9, "ids", "ids")
    evaluated = refimpl.evaluate(theirs, windows, dtype=np.float64).perplexity
    assert PICO.perplexity(ids, model) == pytest.approx(evaluated.value, rel=1e-12)

    half = [[w[x].size // 2 for x in PICO.READS] for w in model.blocks]
    other = PICO.pruned(ids, model, half)
    z, pruned = (PICO.forward(ids, x).reshape(18, -1) for x in (model, other))
    expected = RunningDivergence.start(18).add(z, pruned).value.mean()
    assert PICO.divergence(ids, model, other) == pytest.approx(expected, rel=1e-10)
    assert PICO.divergence(ids, model, model) == 0


def test_a_text_continues_with_the_likeliest_letters_of_the_package() -> None:
    model, theirs = PICO.read(TOY), refimpl.read_model(TOY)
    ids = [model.ids[x] for x in PICO.continued("She was ", model, 24)]
    z = refimpl.forward(theirs, ids[:-1], dtype=np.float64).logits[0]
    assert z.argmax(-1).tolist()[7:] == ids[8:]


def test_the_samples_are_the_package_s() -> None:
    expected = tokens_of(TOY, 5, 100).ids
    samples = PICO.samples(TOY / "calibration.txt", PICO.read(TOY), 5, 100)
    np.testing.assert_array_equal(samples, expected)


@pytest.mark.thorough
def test_harms_and_one_price_are_the_package_s() -> None:
    """Divergence of each block alone, and the closed form with one kappa."""
    model, ids = PICO.read(TOY), tokens_of(TOY, 2, 32).ids
    below, at, above = (PICO.harms(ids, model, s) for s in (0.4, 0.5, 0.6))
    sizes = [sum(w[x].size for x in PICO.READS) for w in model.blocks]
    grows = growth(
        np.stack([below, at, above]), np.repeat([[0.4], [0.5], [0.6]], 8, axis=1)
    )
    kappa = np.full(8, np.median(grows.rate))
    expected = equal_marginals(at, kappa, np.full(8, 0.5), sizes, sparsity=0.5)
    found, _ = PICO.allocation(PICO.equal_prices(below, at, above, 0.5), model, 0.5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_changes_are_paired() -> None:
    rng = np.random.default_rng(0)
    hard, gain = rng.normal(2, 1, 16), rng.normal(0.1, 0.01, 16)
    percent, error = PICO.change(hard, hard + gain)
    assert percent == pytest.approx(100 * (np.exp(gain.mean()) - 1))
    assert error == pytest.approx((100 + percent) * gain.std(ddof=1) / 4)
    assert error < 1  # what makes a sequence hard cancels


def test_divergence_is_best_where_it_runs_alone() -> None:
    """As its page prints, whose test runs it."""
    text = re.findall(
        "```output\n(.*?)```", PAGE.with_suffix(".md").read_text("utf-8"), re.S
    )[0]
    cost = {
        x: float(re.findall(rf"^{re.escape(x)} +(\d+\.\d+)", text, re.M)[0])
        for x in ("uniform", "OWL + absorption", "divergence")
    }
    assert cost["divergence"] < cost["uniform"] < cost["OWL + absorption"]
    assert len(text.splitlines()) == 1 + 8 + 4 + 4


@pytest.mark.thorough
def test_its_texts_have_more_words_than_those_of_its_baselines() -> None:
    """The share of words that the novels have, in greedy continuations of 8 prompts."""
    model, calibration, test = PICO.start(TOY)
    texts = [
        (TOY / f"{x}.txt").read_text("utf-8") for x in ("calibration", "evaluation")
    ]
    known = set(re.findall("[a-z]+", " ".join(texts).lower()))
    harms = [PICO.harms(calibration[:4], model, s) for s in (0.4, 0.5, 0.6)]
    share, characters = [], {i: x for x, i in model.ids.items()}
    for x in (
        PICO.equal_prices(*harms, 0.5),
        np.full(8, 0.5),
        PICO.owl(calibration, model, 0.5),
    ):
        other = PICO.pruned(calibration, model, PICO.allocation(x, model, 0.5)[1])
        ids = test[:8, :32]
        for _ in range(80):
            ids = np.c_[ids, PICO.forward(ids, other)[:, -1].argmax(-1)]
        written = ("".join(characters[i] for i in row[32:].tolist()) for row in ids)
        words = [
            x for text in written for x in re.findall("[a-z]+", text.lower())[1:-1]
        ]
        share.append(np.mean([x in known for x in words]))
    assert share[0] > share[1] + 0.05
    assert share[0] > share[2] + 0.05
