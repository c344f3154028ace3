"""The zeros that the peers' own code left in a tiny Llama, and ours for the same input."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from peer_numbers import TINY, tiny
from safetensors.numpy import load_file

from refimpl import Pattern, PrunerOptions, Request, allocate, prune, score
from refimpl.model.ops import Array
from refimpl.tokens import id_tokens

WEIGHTS = 1e-4  # of a linear's largest weight, and of every row's norm
OPTIONS: dict[str, dict[str, Any]] = {
    "uniform": {}, "owl": {"m": 5.0, "lam": 0.08}, "alphapruning": {"fit": "peak"},
}  # fmt: skip


@cache
def kept() -> Any:
    return np.load(TINY / "keep.npz")


CASES = sorted({key.split("|")[0] for key in kept().files})


@cache
def pruned(case: str, dtype: str) -> dict[str, Array]:
    """Linears of the model after pruning as the peer does, by the peer's names of them."""
    first, _, rest = case.partition("_")
    base = {"owl": "owl", "alpha": "alphapruning"}.get(first, "uniform")
    method: Any = first if base == "uniform" else rest
    tokens, request = id_tokens(TINY / "tokens.npy"), Request(base, OPTIONS[base], compat="peer")
    target = (
        Pattern(2, 4)
        if "2:4" in case
        else allocate(score(tiny(), tokens, request=request, dtype=np.float64), request)
    )
    with TemporaryDirectory() as folder:
        prune(tiny(), Path(folder, "out"), target, PrunerOptions(method), tokens, dtype=dtype)
        weights = load_file(Path(folder, "out", "model.safetensors"))
    return {
        name.removeprefix("model.layers.").replace(".", "/", 1).removesuffix(".weight"): weight
        for name, weight in weights.items()
        if "_proj" in name
    }


def test_all_cases_are_here() -> None:
    assert CASES == [
        "alpha_wanda", "magnitude", "owl_sparsegpt", "owl_wanda",
        "sparsegpt", "sparsegpt_2:4", "wanda", "wanda_2:4",
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_the_zeros_are_the_peers(case: str, dtype: str) -> None:
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
