"""Rotary tables of every scaling against transformers', within the original context and beyond."""

from typing import Any

import numpy as np
import pytest
from checkpoints import config_of
from conftest import FIXTURES
from tables import cases

from refimpl.loading.config_json import read_config
from refimpl.model.position_tables import rotation

pytestmark = pytest.mark.torch
# Fixtures, and lengths up to the context before stretching, and above it
LENGTHS = dict(cases("model", "lengths"))


def angles(theirs: Any, length: int) -> Any:
    """Transformers' cosines and sines of a sequence, [2, S, rotary_dim / 2], in float64."""
    import torch

    with torch.no_grad():
        x, positions = torch.zeros(1, length, 1), torch.arange(length)[None]
        tables = torch.stack(theirs(x, positions))[:, 0].numpy()
    return tables[..., : theirs.inv_freq.shape[0]]  # some repeat the channels


@pytest.mark.parametrize("case", LENGTHS)
def test_the_tables_are_those_of_transformers(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(FIXTURES)
    from transformers_trace import casts_lifted

    config = config_of(case)
    rope = next(kind.rope for kind in read_config(config).config.blocks if kind.rope)
    with casts_lifted():
        model = transformers.AutoModel.from_config(
            transformers.AutoConfig.for_model(**config)
        )
        for length in LENGTHS[case]:
            theirs = angles(model.rotary_emb, length)
            inv_freq = model.rotary_emb.inv_freq.numpy()
            np.testing.assert_allclose(
                rope.inv_freq(length), inv_freq, rtol=1e-15, atol=0
            )
            for mine, right in zip(
                rotation(np.arange(length), rope, "f8"), theirs, strict=True
            ):
                # An angle of n radians has an error of n times that of its frequency
                assert np.all(np.abs(mine - right) <= 1e-15 * (1 + length * inv_freq))
