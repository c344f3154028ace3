"""Experts are pruned by what was routed to them; one that saw no token by magnitude."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gates import model_of

from refimpl import Pattern, Probes, PrunerOptions, Request, prune, read_model, score
from refimpl.loading.samples import Tokens, random_tokens
from refimpl.model.model import BlockWeights
from refimpl.model.ops import Array
from refimpl.model.stream import input_of
from refimpl.model.weight import Weight
from refimpl.pruners.magnitude import magnitude_keep
from refimpl.pruners.pruner import Pruner
from refimpl.pruning.block import pruned_linears
from refimpl.running.threads import Workers
from refimpl.show.models import pruning_table

ONE = Tokens(
    np.array([[7]]), "one token", "ids"
)  # seen by two of five experts per block


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_expert_without_tokens_is_pruned_by_magnitude(
    method: Pruner, tmp_path: Path
) -> None:
    model = model_of("mixtral")
    pruned = prune(model, tmp_path / "out", Pattern(2, 4), PrunerOptions(method), ONE)
    record = json.loads((tmp_path / "out" / "pruning.json").read_text("utf-8"))
    unseen = record["without_tokens"]
    assert [*pruned.without_tokens] == unseen
    assert len(unseen) == 9  # three of five, three blocks
    line = f"no tokens {', '.join(unseen)}, pruned by magnitude"
    assert line in " ".join(pruning_table(pruned, tmp_path / "out").split())
    plain = prune(model, tmp_path / "plain", Pattern(2, 4), PrunerOptions("magnitude"))
    assert plain.without_tokens == ()
    mine, theirs = read_model(tmp_path / "out"), read_model(tmp_path / "plain")
    for i, block in enumerate(record["blocks"]):
        for linear in block["linears"]:
            name = f"blocks.{i}.{linear['name']}"
            fell_back = name.rpartition(".")[0] in unseen
            assert ("method" in linear) == fell_back
            zeros = [
                x.weights[f"{name}.weight"].read("f4") == 0 for x in (mine, theirs)
            ]
            assert np.array_equal(*zeros) == fell_back, name


def test_the_pruning_perturbation_falls_back_too() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 6))
    keep = magnitude_keep(np.abs(weight), 10)
    nothing = np.zeros(6)
    names = "experts.2.up_proj", "up_proj"
    weights = BlockWeights({f"{name}.weight": weight for name in names})
    sums = {input_of(name): nothing for name in names}
    shapes, goals = (
        dict.fromkeys(names, (4, 6)),
        dict(zip(names, (10, 12), strict=True)),
    )
    with Workers(1) as workers:
        found = pruned_linears(
            0, shapes, weights, goals, sums, 1, PrunerOptions(), workers
        )
    np.testing.assert_array_equal(found[names[0]].keep, keep)
    assert found[names[1]].keep[:, 3:].all()  # equal scores: the lowest columns


@pytest.mark.parametrize(
    ("case", "method"), [("granitemoe", "sparsegpt"), ("qwen2_moe", "wanda")]
)
def test_experts_that_are_read_when_they_are_used_change_no_bit(
    case: str, method: Pruner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, folders = model_of(case), list[Path]()
    tokens = random_tokens(model.config.vocab_size, 2, 8)
    plan = Probes(pruner=method)
    results, passes = list[list[Array | None]](), list[int]()
    read = Weight.read

    def counted(*arguments: Any, checked: bool = True) -> Array:
        passes.extend([] if checked else [1])
        return read(*arguments, checked=checked)

    monkeypatch.setattr(Weight, "read", counted)
    request = Request("owl", sparsity=0.5, correct="divergence", strength=1.0)
    for kept in (1 << 26, 1 << 13):
        assert not passes or kept < 1 << 26
        monkeypatch.setattr("refimpl.model.model.EXPERTS_IN_MEMORY", kept)
        scores = score(model, tokens, plan, request)
        sweep, signals = scores.sweep[0], scores.signals
        results.append([sweep.drift, sweep.divergence, signals["owl"].main])
        folders.append(tmp_path / f"{kept}")
        prune(model, folders[-1], Pattern(2, 4), PrunerOptions(method), tokens)
    files = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1]
    for kept_all, kept_few in zip(*results, strict=True):
        np.testing.assert_array_equal(kept_all, kept_few)
    assert passes
