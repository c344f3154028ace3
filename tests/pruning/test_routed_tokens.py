"""Wanda on the tokens that are routed to each expert: the same weights go as in plain torch."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import expected_of
from program import ran
from safetensors.numpy import load_file

pytestmark = pytest.mark.torch
MLP = {  # names of an expert's matrices in the file
    "mixtral": "block_sparse_moe.experts.{}.w1 block_sparse_moe.experts.{}.w3 "
    "block_sparse_moe.experts.{}.w2",
    "olmoe": "mlp.experts.{}.gate_proj mlp.experts.{}.up_proj mlp.experts.{}.down_proj",
}


def halved(weight: Any, squares: Any) -> Any:
    """The weights without the half of each row that scores lowest, by ``|W| sqrt(c)``."""
    import torch

    lowest = torch.argsort(weight.abs() * squares.sqrt(), dim=1, stable=True)
    return weight.scatter(1, lowest[:, : weight.shape[1] // 2], 0.0)


def keep(
    inputs: dict[str, Any], key: str, module: Any, arguments: tuple[Any, ...]
) -> None:
    """Keep what a module reads."""
    inputs[key] = arguments[0]


def pruned_by_torch(name: str, ids: Any) -> dict[str, Any]:
    """A fixture pruned block by block in float64, with statistics of the tokens of each expert."""
    import torch
    import transformers

    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        FIXTURES / name,
        dtype=torch.float64,
        attn_implementation="eager",
        experts_implementation="eager",
    ).model
    states, found = model.embed_tokens(torch.tensor(ids)), dict[str, Any]()
    positions = torch.arange(states.shape[1])[None]
    rotary = model.rotary_emb(states, positions)
    distance = positions.T - positions
    window = model.config.to_dict().get("sliding_window") or states.shape[1]
    hidden = (distance < 0) | (distance >= window)
    mask = torch.zeros(1, 1, *distance.shape, dtype=torch.float64)
    mask[0, 0][hidden] = float("-inf")
    options = {
        "attention_mask": mask,
        "position_ids": positions,
        "position_embeddings": rotary,
    }
    for i, layer in enumerate(model.layers):
        inputs = dict[str, Any]()
        attention = layer.self_attn
        linears = {x: getattr(attention, f"{x}_proj") for x in "qkvo"}
        hooks = [
            module.register_forward_pre_hook(partial(keep, inputs, key))
            for key, module in {**linears, "mlp": layer.mlp}.items()
        ]
        layer(states, **options)
        for hook in hooks:
            hook.remove()
        for key, module in linears.items():
            squares = inputs[key].flatten(0, 1).square().sum(0) / len(ids)
            module.weight.data = halved(module.weight, squares)
            found[f"self_attn.{key}_proj", i] = module.weight
        x, experts = inputs["mlp"].flatten(0, 1), layer.mlp.experts
        logits = x @ layer.mlp.gate.weight.T
        chosen = logits.topk(model.config.num_experts_per_tok, dim=1).indices
        names = MLP[name].split()
        for e in range(len(logits[0])):
            rows = x[(chosen == e).any(dim=1)]
            gate, up = experts.gate_up_proj[e].chunk(2)
            inner = torch.nn.functional.silu(rows @ gate.T) * (rows @ up.T)
            c, d = rows.square().sum(0) / len(ids), inner.square().sum(0) / len(ids)
            new = [halved(gate, c), halved(up, c), halved(experts.down_proj[e], d)]
            experts.gate_up_proj.data[e] = torch.cat(new[:2])
            experts.down_proj.data[e] = new[2]
            found |= {(n.format(e), i): w for n, w in zip(names, new, strict=True)}
        states = layer(states, **options)
    return {
        f"model.layers.{i}.{n}.weight": w.numpy() == 0 for (n, i), w in found.items()
    }


@pytest.mark.parametrize("name", MLP)
def test_the_same_weights_go_as_in_torch(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    ids = expected_of(name)[0]
    np.save(tmp_path / "ids.npy", ids)
    ran(
        "prune",
        FIXTURES / name,
        "-o",
        tmp_path / "out",
        "--tokens",
        tmp_path / "ids.npy",
        "--sparsity",
        0.5,
        "--allocation",
        "uniform",
        "--dtype",
        "float64",
    )
    ours = load_file(tmp_path / "out" / "model.safetensors")
    theirs = pruned_by_torch(name, ids)
    assert sum(".experts." in key for key in theirs) == 3 * 5 * len(
        {key.split(".")[2] for key in theirs}
    )
    for key, zeros in theirs.items():
        np.testing.assert_array_equal(ours[key] == 0, zeros, key)
