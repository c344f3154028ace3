"""`docs/tutorial/pico.py`: the same numbers as the package, in one file of at most 200 lines."""

import ast
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from safetensors.numpy import load_file

import refimpl
from refimpl.method.projection import project
from refimpl.pruners.wanda import wanda_keep
from refimpl.tokens import random_tokens

PAGE = Path(__file__).parents[2] / "docs" / "tutorial" / "pico.py"
PICO = SimpleNamespace(**runpy.run_path(str(PAGE)))
LLAMA = FIXTURES / "llama"


def relative(found: Any, expected: Any) -> float:
    """The worst relative error of a row, by its norm."""
    a, b = (np.atleast_2d(np.asarray(x, np.float64)) for x in (found, expected))
    return float(np.max(np.linalg.norm(a - b, axis=-1) / np.linalg.norm(b, axis=-1)))


def test_it_is_short_and_needs_numpy_and_safetensors_only() -> None:
    source = PAGE.read_text("utf-8")
    assert len(source.splitlines()) <= 200
    assert max(map(len, source.splitlines())) <= 100
    imports = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in imports}
    outside = {str(name).split(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert outside == {"numpy", "safetensors"}


@pytest.mark.parametrize("length", [1, 2, 33])
def test_every_step_of_the_forward_is_the_package_s(length: int) -> None:
    model, theirs = PICO.read(LLAMA), refimpl.read_model(LLAMA)
    ids = random_tokens(theirs.config.vocab_size, 3, length, seed=length).ids
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


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_scores_allocation_and_masks_are_the_package_s(sparsity: float, tmp_path: Path) -> None:
    model, theirs = PICO.read(LLAMA), refimpl.read_model(LLAMA)
    tokens = random_tokens(theirs.config.vocab_size, 4, 24, seed=7)
    wanted = refimpl.Request(base="owl", sparsity=sparsity)
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
            part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
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


def test_perplexity_is_of_the_next_token() -> None:
    model, theirs = PICO.read(LLAMA), refimpl.read_model(LLAMA)
    ids = random_tokens(theirs.config.vocab_size, 2, 9).ids
    logits = refimpl.forward(theirs, ids, dtype=np.float64).logits[:, :-1]
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    of_next = np.take_along_axis(p, ids[:, 1:, None], axis=-1)
    assert PICO.perplexity(ids, model) == pytest.approx(np.exp(-np.log(of_next).mean()), rel=1e-12)
    continued = PICO.continued(ids[0], model, 3)
    again = refimpl.forward(theirs, continued[:-1], dtype=np.float64).logits[0, -3:].argmax(axis=-1)
    assert continued[-3:].tolist() == again.tolist()
