"""transformers' own forward: of a model, by our names of the steps, and of random weights."""

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES

from refimpl import Model
from refimpl.model.ops import Array
from refimpl.oracle.measures import array_of


def transformers_forward(
    model: Model, dtype: str, attention: str = "eager"
) -> Callable[[Array], dict[str, Array]]:
    """Open a model with transformers: from token ids [B, S] to arrays by step.

    With eager attention every trace point, else the states. In float64 casts to float32 are lifted.
    """
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    sys.path.append(str(FIXTURES))
    from transformers_trace import casts_lifted, lifted, traced

    # torch has no grouped product of experts in float64
    experts = {"experts_implementation": "eager"} if model.config.experts else {}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        model.folder,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        **experts,
    )
    double = dtype == "float64"
    theirs = lifted(theirs) if double else theirs.eval()
    states = [
        "embed",
        *(f"blocks.{i}.resid_post" for i in range(model.config.num_blocks)),
    ]
    names = [*states[:-1], "final_norm", "logits"]

    def run(token_ids: Array) -> dict[str, Array]:
        ids = torch.tensor(np.asarray(token_ids, np.int64))
        with torch.no_grad(), casts_lifted() if double else nullcontext():
            if attention == "eager":
                return {name: array_of(x) for name, x in traced(theirs, ids).items()}
            out = theirs(input_ids=ids, use_cache=False, output_hidden_states=True)
        arrays = [array_of(x) for x in out.hidden_states]
        return dict(zip(names, [*arrays, array_of(out.logits)], strict=True))

    return run


def random_model(
    config: dict[str, Any], token_ids: Array, folder: Path
) -> tuple[Any, Array]:
    """Write a model with a configuration and random weights; its configuration, and its logits.

    The logits [B, S, V] are float64, with transformers' casts to float32 lifted.
    """
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    sys.path.append(str(FIXTURES))
    from transformers_trace import casts_lifted, lifted

    attention = (
        "sdpa" if config.get("alibi") else "eager"
    )  # see fixtures/make_fixtures.py
    how = {"attn_implementation": attention, "experts_implementation": "eager"}
    # Its infinity is an object in files, which transformers reads from files alone
    config = {key: value for key, value in config.items() if key != "time_step_limit"}
    with casts_lifted():
        made = transformers.AutoConfig.for_model(**json.loads(json.dumps(config)))
        theirs = lifted(
            transformers.AutoModelForCausalLM.from_config(made, **how)
        ).double()
        with torch.no_grad():
            for name, weight in theirs.named_parameters():
                weight.copy_(torch.randn_like(weight) * 0.2 + ("norm" in name))
            logits = theirs(torch.tensor(token_ids)).logits.numpy()
    theirs.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return made, logits
