"""Numbers that the peers' own code gave for a tiny Llama, and ours for the same input."""

import json
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from conftest import FIXTURES
from safetensors.numpy import load_file

from refimpl.method.allocation import alphapruning, atp, dlp, owl
from refimpl.method.signals import alphapruning_alpha, esd

PEERS = FIXTURES / "peers"
TINY = PEERS / "tiny-llama"
Fit = Literal["peak", "mid"]


@cache
def expected() -> dict[str, Any]:
    numbers: dict[str, Any] = json.loads((TINY / "expected.json").read_text())
    return numbers


@cache
def weights() -> dict[str, npt.NDArray[np.float32]]:
    return load_file(TINY / "model.safetensors")


@cache
def alphas(fit: Fit) -> dict[str, float]:
    """Our alpha of every linear, by the peer's name of it."""
    names = expected()[f"alphapruning_alpha_{fit}"]["alpha_per_linear"]
    return {
        name: alphapruning_alpha(esd(weights()[f"model.layers.{name}.weight"]), fit).alpha
        for name in names
    }


# Signals


@pytest.mark.parametrize("fit", ["peak", "mid"])
def test_alphapruning_alphas(fit: Fit) -> None:
    # The peer's float32 accounts for what is left, 2e-6: see the next test.
    peer = expected()[f"alphapruning_alpha_{fit}"]["alpha_per_linear"]
    assert len(peer) == 28
    for name, alpha in peer.items():
        assert alphas(fit)[name] == pytest.approx(alpha, rel=1e-5), name


def test_float32_explains_the_difference_to_the_peers_alphas() -> None:
    for name, weight in weights().items():
        if "_proj" not in name:
            continue
        in_float32 = np.linalg.svd(weight, compute_uv=False)[::-1].astype(np.float64) ** 2
        rounded = alphapruning_alpha(in_float32)
        exact = alphapruning_alpha(esd(weight))
        assert rounded.start == exact.start
        assert rounded.alpha == pytest.approx(exact.alpha, rel=1e-5)


# Allocations, from the peer's own signals


def test_owl_allocation() -> None:
    for run in (expected()["owl"], expected()["owl_m3"]):
        s = owl(run["outlier_percent_per_block"], 0.7, run["lam"], compat="peer")
        np.testing.assert_allclose(s, run["sparsity_per_block"], rtol=0, atol=1e-12)


def test_dlp_allocation() -> None:
    # Its densities went through float32: 1e-7 is what that leaves.
    run = expected()["dlp"]
    s = dlp(run["score"], 0.7, compat="peer")
    np.testing.assert_allclose(s, run["sparsity"], rtol=0, atol=1e-7)
    np.testing.assert_allclose(1 - s, run["density"], rtol=0, atol=1e-7)


def test_atp_allocation() -> None:
    np.testing.assert_allclose(atp(4, 0.7, 0.02), expected()["atp"]["sparsity"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fit", ["peak", "mid"])
def test_alphapruning_allocation_from_the_weights(fit: Fit) -> None:
    run = expected()[f"alphapruning_alpha_{fit}"]
    for per_linear, tolerance in ((run["alpha_per_linear"], 2e-7), (alphas(fit), 1e-6)):
        blocks = {name.split(".")[0] for name in per_linear}
        means = [
            float(np.mean([alpha for name, alpha in per_linear.items() if name[0] == block]))
            for block in sorted(blocks)
        ]
        s = alphapruning(means, [1] * 4, 0.7, run["eps"], compat="peer")
        for name, sparsity in run["sparsity_per_linear"].items():
            assert s[int(name[0])] == pytest.approx(sparsity, abs=tolerance), name


@pytest.mark.parametrize(
    "model", ["llama-7b-hf", "llama-13b-hf", "llama2-7b-hf", "llama2-13b-hf", "llama2-70b-hf"]
)
def test_alphapruning_allocation_of_the_shipped_llama_alphas(model: str) -> None:
    run = json.loads((PEERS / "alphapruning_llama.json").read_text())[model]
    sizes = [1] * len(run["block_alpha"])
    s = alphapruning(run["block_alpha"], sizes, run["S"], run["epsilon"], compat="peer")
    np.testing.assert_allclose(s, run["block_sparsity"], rtol=0, atol=1e-7)
