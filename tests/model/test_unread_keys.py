"""Keys of a `config.json` that transformers stores and never computes with."""

from pathlib import Path

import numpy as np
import pytest
from checkpoints import altered
from conftest import FIXTURES
from gates import GATES, worst_token

from refimpl import forward, read_model

IDS = np.arange(2, 26).reshape(2, 12)


def capped(folder: Path) -> Path:
    """Gemma 3 whose attention logits transformers does not cap, although `config.json` says so."""
    return altered(folder, "gemma3", lambda _: None, attn_logit_softcapping=0.5)


def test_gemma_3_does_not_cap_attention(tmp_path: Path) -> None:
    ours, plain = (
        forward(read_model(x), IDS, dtype="f8", trace=True)
        for x in (capped(tmp_path / "m"), FIXTURES / "gemma3")
    )
    for name, value in plain.trace.items():
        np.testing.assert_array_equal(ours.trace[name], value, name)


@pytest.mark.torch
def test_transformers_does_not_cap_it_either(tmp_path: Path) -> None:
    import torch
    import transformers

    folder = capped(tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    assert theirs.config.attn_logit_softcapping == 0.5
    with torch.no_grad():
        logits = theirs(torch.tensor(IDS)).logits.numpy()
    ours = forward(read_model(folder), IDS, dtype="f8").logits
    assert worst_token(ours, logits) <= GATES["float32"]  # of its float32 inside
