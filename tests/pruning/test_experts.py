"""Experts are pruned by what was routed to them; one that saw no token by magnitude."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from gates import model_of
from program import run

from refimpl import Pattern, Pruner, prune, read_model
from refimpl.model.ops import Array
from refimpl.pruners.decision import Method
from refimpl.pruners.scores import magnitude_keep, magnitude_score
from refimpl.scoring.perturbed_state import wanda_pruned
from refimpl.show.pruning import pruning_table
from refimpl.tokens import Tokens

ONE = Tokens(np.array([[7]]), "one token", "ids")  # seen by two of five experts per block


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_an_expert_without_tokens_is_named_and_pruned_by_magnitude(
    method: Method, tmp_path: Path
) -> None:
    model = model_of("mixtral")
    pruned = prune(model, tmp_path / "out", Pattern(2, 4), Pruner(method), ONE)
    record = json.loads((tmp_path / "out" / "pruning.json").read_text("utf-8"))
    unseen = record["without_tokens"]
    assert pruned.without_tokens == unseen
    assert len(unseen) == 9  # three of five, three blocks
    line = f"pruned by magnitude, without calibration tokens: {', '.join(unseen)}"
    assert line in pruning_table(pruned, record, tmp_path / "out")
    plain = prune(model, tmp_path / "plain", Pattern(2, 4), Pruner("magnitude"))
    assert plain.without_tokens == []
    mine, theirs = read_model(tmp_path / "out"), read_model(tmp_path / "plain")
    for i, block in enumerate(record["blocks"]):
        for linear in block["linears"]:
            name = f"blocks.{i}.{linear['name']}"
            fell_back = name.rpartition(".")[0] in unseen
            assert ("method" in linear) == fell_back
            zeros = [x.weights[f"{name}.weight"].read("f4") == 0 for x in (mine, theirs)]
            assert np.array_equal(*zeros) == fell_back, name


def test_the_pruning_perturbation_falls_back_too() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 6))
    keep = magnitude_keep(magnitude_score(weight), 10)
    nothing = np.zeros(6)
    expert = wanda_pruned(weight, nothing, 10, "experts.2.up_proj")
    np.testing.assert_array_equal(expert, np.where(keep, weight, 0))
    dense = wanda_pruned(weight, nothing, 12, "up_proj")  # equal scores: the lowest columns
    np.testing.assert_array_equal(dense[:, 3:], weight[:, 3:])


def routers(folder: Path) -> dict[str, Array]:
    weights = read_model(folder).weights
    return {name: w.read("f4") for name, w in weights.items() if "router" in name}


def test_routers_stay(tmp_path: Path) -> None:
    done = run("prune", FIXTURES / "mixtral", "-o", tmp_path / "out", "--sparsity", 0.6,
               "--tokens", "random", "--samples", 3, "--seq-len", 12)  # fmt: skip
    assert done.code == 0
    before, after = routers(FIXTURES / "mixtral"), routers(tmp_path / "out")
    assert len(before) == 3
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
        assert not (values == 0).any()
