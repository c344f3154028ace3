"""Masks of pruned models are the pruner's decisions, also of weights that were zero before."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import altered
from conftest import FIXTURES
from pruned_models import pruned_blocks
from refusals import refusal_of

from refimpl import Pattern, PrunerOptions, masks, prune, read_model
from refimpl.allocation.scores_json import targets_for
from refimpl.loading.files.safetensors_file import SafetensorsFile, write_arrays
from refimpl.loading.samples import random_tokens
from refimpl.running.settings import Settings


def with_zeros(arrays: dict[str, Any]) -> None:
    """One of eight weights is zero in two of three rows of every linear."""
    for name, x in arrays.items():
        if x.ndim == 2 and "layers" in name:
            x = x.copy()
            x[:, ::8] = np.where(np.arange(len(x))[:, None] % 3 > 0, 0, x[:, ::8])
            arrays[name] = x


@pytest.mark.parametrize(
    "case", ["llama", "gpt2", "gpt_neox", "phi3", "qwen3_moe", "gpt_oss"]
)
@pytest.mark.parametrize("pruner", ["wanda", "magnitude", "sparsegpt", "admm"])
def test_masks_are_the_decisions(case: str, pruner: str, tmp_path: Path) -> None:
    model = read_model(altered(tmp_path / "model", case, with_zeros))
    tokens = random_tokens(model.config.vocab_size, 2, 40)
    target, how = Pattern(2, 4), PrunerOptions(pruner)
    prune(model, tmp_path / "out", target, how, tokens)
    pruned = read_model(tmp_path / "out")
    found, named = masks(model, pruned), masks(model, pruned, "transformers")
    goals, ids = targets_for(target, model.config.linears), tokens.ids
    with Settings(threads=1).open() as resources:
        for block in pruned_blocks(model, goals, how, ids, resources):
            for name, linear in block.linears.items():
                key = f"blocks.{block.index}.{name}.weight"
                np.testing.assert_array_equal(found.pop(key), linear.keep, key)
    assert not found
    write_arrays(tmp_path / "masks.safetensors", named)
    for name, tensor in SafetensorsFile(tmp_path / "masks.safetensors").tensors.items():
        weights = next(
            x.stored for x in pruned.weights.values() if x.stored.name == name
        )
        assert tensor.shape == weights.shape
        assert not np.asarray(weights.array)[~named[name]].any()


def test_zeros_that_were_there_before_stay_if_they_were_not_pruned(
    tmp_path: Path,
) -> None:
    model = read_model(altered(tmp_path / "model", "llama", with_zeros))
    tokens = random_tokens(264, 2, 12)
    prune(model, tmp_path / "none", Pattern(0, 4), "wanda", tokens)
    assert all(
        mask.all() for mask in masks(model, read_model(tmp_path / "none")).values()
    )
    prune(model, tmp_path / "out", Pattern(1, 4), "magnitude")
    pruned = read_model(tmp_path / "out")
    found = masks(model, pruned)
    assert sum((~mask).sum() for mask in found.values()) == 29184 // 4
    shutil.copytree(tmp_path / "out", tmp_path / "foreign")
    (tmp_path / "foreign" / "pruning.json").unlink()
    foreign = masks(model, read_model(tmp_path / "foreign"))
    for key, mask in foreign.items():
        before, after = (x.weights[key].as_stored == 0 for x in (model, pruned))
        np.testing.assert_array_equal(mask, ~(after & ~before))


def test_what_the_files_do_not_say_is_refused(tmp_path: Path) -> None:
    def zeroed(arrays: dict[str, Any]) -> None:
        name = "model.layers.1.mlp.up_proj.weight"
        arrays[name] = arrays[name].copy()
        arrays[name][:, :3] = 0

    model = read_model(altered(tmp_path / "model", "llama", zeroed))
    prune(model, tmp_path / "out", Pattern(2, 4), "magnitude")
    error = refusal_of(
        masks, model, read_model(tmp_path / "out"), says="do not say which"
    )
    assert "blocks.1.up_proj.weight" in error.problem
    other = read_model(FIXTURES / "mixtral")
    refusal_of(masks, other, model, says="whose linears differ")
