"""Models that mix tokens in other ways than attention: scored by every base, pruned, exact."""

from pathlib import Path

import numpy as np
import pytest
from gates import model_of

from refimpl import Pattern, Request, allocate, prune, read_model, score
from refimpl.bases.base import bases
from refimpl.pruners.pruner import pruners
from refimpl.tokens import Tokens

CASES = (
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "afmoe",
    "laguna",
    "qwen3_5",
    "qwen3_next",
    "deepseek_v3",
    "kimi_linear",
    "minicpm3",
    "granite_hybrid",
    "bamba",
    "nemotron_h",
    "falcon_h1",
    "olmo_hybrid",
    "gemma4",
    "gemma4_experts",
    "gemma4_small",
)
IDS = Tokens(np.random.default_rng(3).integers(0, 61, (2, 9)), "random ids", "ids")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pruner", pruners())
def test_linears_are_pruned_and_nothing_else(case: str, pruner: str, tmp_path: Path) -> None:
    model = model_of(case)
    prune(model, tmp_path / "pruned", Pattern(2, 4), pruner, IDS)
    pruned = read_model(tmp_path / "pruned")
    for i, linears in enumerate(model.config.linears):
        before, after = (x.block(i, np.float64) for x in (model, pruned))
        for name, weight in before.items():
            if name.removesuffix(".weight") in linears:
                assert np.mean(after[name] == 0) == 0.5, name
            else:
                np.testing.assert_array_equal(after[name], weight, err_msg=name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", bases())
def test_every_base_has_an_allocation(case: str, base: str) -> None:
    options = {"beta": 0.1} if base == "atp" else {}
    scores = score(model_of(case), IDS, request=Request(base, options, 0.5))
    allocation = allocate(scores)
    total = sum(out * width for block in scores.linears for out, width in block.values())
    assert abs(allocation.total_pruned - total / 2) <= 0.5
