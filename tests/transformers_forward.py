"""transformers' own forward of a model: the arrays that it returns, by our names of the steps."""

import sys
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
from conftest import FIXTURES

from refimpl import Model
from refimpl.model.ops import Array


def transformers_forward(model: Model, dtype: str) -> Callable[[Array], dict[str, Array]]:
    """Open a model with transformers: from token ids [B, S] to arrays by step.

    Attention is eager, and in float64 its casts to float32 are lifted.
    """
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    sys.path.append(str(FIXTURES))
    from transformers_trace import casts_lifted, lifted

    # torch has no grouped product of experts in float64
    experts = {"experts_implementation": "eager"} if model.config.experts else {}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        model.folder, dtype=getattr(torch, dtype), attn_implementation="eager", **experts
    )
    double = dtype == "float64"
    theirs = lifted(theirs) if double else theirs.eval()
    between = (f"blocks.{i}.resid_post" for i in range(model.config.num_blocks - 1))
    names = ["embed", *between, "final_norm", "logits"]

    def run(token_ids: Array) -> dict[str, Array]:
        ids = torch.tensor(np.asarray(token_ids, np.int64))
        with torch.no_grad(), casts_lifted() if double else nullcontext():
            out = theirs(input_ids=ids, use_cache=False, output_hidden_states=True)
        arrays = [*out.hidden_states, out.logits]
        return {name: array.numpy() for name, array in zip(names, arrays, strict=True)}

    return run
