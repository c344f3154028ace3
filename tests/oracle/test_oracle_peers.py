"""Real implementations as candidates: transformers' forward, and numbers of the peers' code.

Where the peers differ on purpose, the case holds their number, too, under a name of its own.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from candidates import EACH_CASE
from gates import case_of
from peer_numbers import TINY, expected
from transformers_forward import transformers_forward

from refimpl.loading.checkpoint import read_model
from refimpl.model.ops import Array
from refimpl.oracle.answers import peer_answers
from refimpl.oracle.case import Case
from refimpl.oracle.check import check
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.steps import steps
from refimpl.show.oracle import report_table
from refimpl.tokens import id_tokens


@pytest.mark.torch
@pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", EACH_CASE)
def test_transformers_passes(name: str, dtype: str) -> None:
    case = case_of(name)
    arrays = transformers_forward(case.model, dtype)(case.inputs["token_ids"])
    points = tuple(arrays)
    report = check(case, arrays, points, dtype)
    assert report.verdict == "pass", report.first
    assert len(report.steps) == len(points)


@cache
def tiny_steps() -> tuple[dict[str, Array], dict[str, Array]]:
    """The tiny Llama that the peers' code ran on: every step, and the peers' numbers."""
    model, ids = read_model(TINY), id_tokens(TINY / "tokens.npy").ids
    recipe = Recipe(sparsity=0.7, pattern="")
    arrays = steps(model, ids, recipe)
    case = Case(Path(), "tiny", model, recipe, {"token_ids": ids}, arrays)
    return arrays, peer_answers(case)


def test_the_peers_numbers_are_the_peers() -> None:
    arrays, peer = tiny_steps()
    theirs = expected()
    owl, per_linear = theirs["owl"], theirs["alphapruning_alpha_peak"]["sparsity_per_linear"]
    bases = {
        "owl": owl["sparsity_per_block"],
        "dlp": 1 - np.array(theirs["dlp"]["density"]),
        "alphapruning": [per_linear[f"{i}.mlp.down_proj"] for i in range(4)],
    }
    np.testing.assert_allclose(arrays["owl.signal"], owl["outlier_percent_per_block"], atol=1e-12)
    for base, right in bases.items():
        np.testing.assert_allclose(peer[f"{base}.base"], right, atol=1e-6, err_msg=base)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_the_peers_decisions_are_the_peers(method: str) -> None:
    arrays, peer = tiny_steps()
    theirs = np.load(TINY / "keep.npz")
    block = {k: x for k, x in peer.items() if k.startswith(f"{method}.blocks.0.")}
    assert len(block) == 7
    for name, keep in block.items():
        linear = name.split(".")[3]
        module = "self_attn" if linear in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        key = f"owl_{method}|0/{module}.{linear}"
        shape = theirs[f"{key}|shape"]
        right = np.unpackbits(theirs[key], count=shape.prod()).reshape(shape)
        assert np.array_equal(np.unpackbits(keep, axis=1, count=shape[1]), right), name
        assert not np.array_equal(keep, arrays[name])


@pytest.mark.parametrize("step", ["owl.counts", "wanda.blocks.0.o_proj.keep", "uniform.counts"])
def test_a_candidate_with_the_peers_number_is_told_so(step: str) -> None:
    case = case_of("llama")
    actual = {k: v.copy() for k, v in case.expected.items()}
    assert not np.array_equal(peer_answers(case)[step], actual[step])
    actual[step] = peer_answers(case)[step]
    report = check(case, actual)
    assert report.first is not None
    assert report.first.step == step
    assert "what the peers' code gives" in report.first.fault
    assert "what the peers' code gives" in report_table(report, "a file")
    near = actual[step].copy()
    near.flat[0] += 1
    other = check(case, actual | {step: near}).first
    assert other is not None
    assert "peers" not in other.fault
