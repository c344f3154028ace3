"""Experts that share a stored tensor, [E, in, out], gate and up alternating: it is written back."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from gates import expected_of, model_of, worst_token
from safetensors.numpy import load_file

from refimpl import Pattern, Pruner, forward, prune, read_model
from refimpl.model.ops import Array
from refimpl.pruners.decision import Method
from refimpl.tokens import Tokens

STACK = "model.layers.{}.mlp.experts."


def by_linear(stored: dict[str, Array], block: int, expert: int) -> dict[str, Array]:
    """The matrices [out, in] of an expert, cut out of its stacks by hand."""
    both, down = (stored[STACK.format(block) + x][expert] for x in ("gate_up_proj", "down_proj"))
    return {"gate_proj": both[:, ::2].T, "up_proj": both[:, 1::2].T, "down_proj": down.T}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_every_expert_has_its_pattern_in_the_stored_stack(method: Method, tmp_path: Path) -> None:
    tokens = Tokens(expected_of("gpt_oss")[0], "of the fixture", "ids")
    prune(model_of("gpt_oss"), tmp_path / "out", Pattern(2, 4), Pruner(method), tokens)
    old, new = (
        load_file(x / "model.safetensors") for x in (FIXTURES / "gpt_oss", tmp_path / "out")
    )
    record = json.loads((tmp_path / "out" / "pruning.json").read_text("utf-8"))
    assert {name: x.shape for name, x in new.items()} == {name: x.shape for name, x in old.items()}
    for i, block in enumerate(record["blocks"]):
        zeros = {linear["name"]: linear["zeros"] for linear in block["linears"]}
        for e in range(5):
            dense, pruned = by_linear(old, i, e), by_linear(new, i, e)
            for name, values in pruned.items():
                runs = (values == 0).reshape(len(values), -1, 4).sum(axis=-1)
                assert (runs == 2).all(), (i, e, name)
                assert zeros[f"experts.{e}.{name}"] == values.size // 2
                same = values[values != 0] == dense[name][values != 0]
                assert same.all() == (method == "wanda")  # SparseGPT moves what stays
    others = [name for name in old if name.endswith(("bias", "sinks", "router.weight"))]
    assert len(others) == 2 * (4 + 2 + 1 + 2)
    for name in others:
        np.testing.assert_array_equal(new[name], old[name])


@pytest.mark.torch
def test_transformers_computes_the_same_from_the_pruned_stacks(tmp_path: Path) -> None:
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    ids = expected_of("gpt_oss")[0]
    prune(model_of("gpt_oss"), tmp_path / "out", Pattern(2, 4), Pruner("magnitude"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits = theirs(torch.tensor(ids), use_cache=False).logits.numpy()
    assert worst_token(logits, forward(read_model(tmp_path / "out"), ids).logits) < 1e-5
    assert worst_token(logits, expected_of("gpt_oss")[1]["logits"]) > 1e-2
