"""The zeros that the peers' own code left in a tiny Llama, and those of `refimpl prune`."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from peer_numbers import TINY
from program import ran
from safetensors.numpy import load_file
from tables import cases

from refimpl.model.ops import Array

WEIGHTS = 1e-4  # of a linear's largest weight, and of every row's norm
PEERS = dict(cases("pruners", "peers"))


@cache
def kept() -> Any:
    return np.load(TINY / "keep.npz")


@cache
def pruned(case: str, dtype: str) -> dict[str, Array]:
    """Linears of the model after pruning as the peer does, by the peer's names of them."""
    words = (*PEERS[case].split(), "--compat", "peer", "--dtype", dtype)
    tokens = () if case == "magnitude" else ("--tokens", TINY / "tokens.npy")
    with TemporaryDirectory() as folder:
        ran("prune", TINY, "-o", Path(folder, "out"), *words, *tokens)
        weights = load_file(Path(folder, "out", "model.safetensors"))
    return {
        name.removeprefix("model.layers.")
        .replace(".", "/", 1)
        .removesuffix(".weight"): weight
        for name, weight in weights.items()
        if "_proj" in name
    }


def test_all_cases_are_here() -> None:
    assert {key.split("|")[0] for key in kept().files} == PEERS.keys()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", PEERS)
def test_the_zeros_are_the_peers(case: str, dtype: str) -> None:
    """Allocation, calibration and masks are all ours; `keep.npz` is what the peers' code left."""
    assert len(pruned(case, dtype)) == 28
    for name, weight in pruned(case, dtype).items():
        key = f"{case}|{name}"
        assert weight.shape == tuple(kept()[f"{key}|shape"])
        theirs = np.unpackbits(kept()[key])[: weight.size].reshape(weight.shape)
        np.testing.assert_array_equal(weight != 0, theirs, key)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sparsegpts_weights_are_the_peers(dtype: str) -> None:
    # Measured: 8.5e-6 of the largest weight, 1.3e-5 of a row.
    for name, weight in pruned("sparsegpt", dtype).items():
        theirs = kept()[f"sparsegpt|{name}|weight"].astype(np.float64)
        apart = weight - theirs
        assert np.abs(apart).max() < WEIGHTS * np.abs(theirs).max(), name
        rows = np.linalg.norm(apart, axis=1) / np.linalg.norm(theirs, axis=1)
        assert rows.max() < WEIGHTS, name
