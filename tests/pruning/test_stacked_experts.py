"""Experts that share a stored tensor, [E, in, out], gate and up alternating or in halves."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from gates import expected_of, model_of, worst_token
from safetensors.numpy import load_file

from refimpl import Pattern, PrunerOptions, forward, prune, read_model
from refimpl.loading.samples import Tokens
from refimpl.model.ops import Array
from refimpl.pruners.pruner import Pruner

STACK = {
    "gpt_oss": "model.layers.{}.mlp.experts.",
    "llama4_text": "model.layers.{}.feed_forward.experts.",
}
GATE = {
    "gpt_oss": slice(0, None, 2),
    "llama4_text": slice(0, 8),
}  # columns of gate_up_proj
UP = {"gpt_oss": slice(1, None, 2), "llama4_text": slice(8, None)}


def by_linear(
    case: str, stored: dict[str, Array], block: int, expert: int
) -> dict[str, Array]:
    """The matrices [out, in] of an expert, cut out of its stacks by hand."""
    stack = STACK[case].format(block)
    both, down = (stored[stack + x][expert] for x in ("gate_up_proj", "down_proj"))
    halves = {"gate_proj": both[:, GATE[case]], "up_proj": both[:, UP[case]]}
    return {name: x.T for name, x in (halves | {"down_proj": down}).items()}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("case", STACK)
def test_every_expert_has_its_pattern(
    case: str, method: Pruner, tmp_path: Path
) -> None:
    tokens = Tokens(expected_of(case)[0], "of the fixture", "ids")
    prune(
        model_of(case), tmp_path / "out", Pattern(2, 4), PrunerOptions(method), tokens
    )
    old, new = (
        load_file(x / "model.safetensors") for x in (FIXTURES / case, tmp_path / "out")
    )
    record = json.loads((tmp_path / "out" / "pruning.json").read_text("utf-8"))
    assert {name: x.shape for name, x in new.items()} == {
        name: x.shape for name, x in old.items()
    }
    for i, block in enumerate(record["blocks"]):
        recorded = {linear["name"]: linear for linear in block["linears"]}
        for e in range(len(old.get(STACK[case].format(i) + "down_proj", ()))):
            dense, pruned = by_linear(case, old, i, e), by_linear(case, new, i, e)
            for name, values in pruned.items():
                runs = (values == 0).reshape(len(values), -1, 4).sum(axis=-1)
                assert (runs == 2).all(), (i, e, name)
                assert recorded[f"experts.{e}.{name}"]["zeros"] == values.size // 2
                same = values[values != 0] == dense[name][values != 0]
                by_size = (
                    "method" in recorded[f"experts.{e}.{name}"]
                )  # an expert without tokens
                assert same.all() == (
                    method == "wanda" or by_size
                )  # SparseGPT moves what stays
    others = [name for name in old if name.endswith(("bias", "sinks", "router.weight"))]
    assert len(others) == (1 if case == "llama4_text" else 2 * (4 + 2 + 1 + 2))
    for name in others:
        np.testing.assert_array_equal(new[name], old[name])


@pytest.mark.torch
@pytest.mark.parametrize("case", STACK)
def test_transformers_computes_the_same_from_the_pruned_stacks(
    case: str, tmp_path: Path
) -> None:
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    ids = expected_of(case)[0]
    prune(model_of(case), tmp_path / "out", Pattern(2, 4), PrunerOptions("magnitude"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits = theirs(torch.tensor(ids), use_cache=False).logits.numpy()
    assert worst_token(logits, forward(read_model(tmp_path / "out"), ids).logits) < 1e-5
    assert worst_token(logits, expected_of(case)[1]["logits"]) > 1e-2
