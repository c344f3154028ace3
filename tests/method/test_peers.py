"""Numbers that the peers' own code gave for a tiny Llama, and ours for the same input."""

import json
from functools import cache
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from gates import GATES
from peer_numbers import PEERS, TINY, expected, tiny
from safetensors.numpy import load_file

from refimpl import Request, Scores, allocate, score
from refimpl.bases.alphapruning import alphapruning
from refimpl.bases.atp import atp
from refimpl.bases.dlp import dlp
from refimpl.bases.lsa import lsa, lsa_error
from refimpl.bases.owl import owl
from refimpl.method.spectrum import alphapruning_alpha, esd
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of, sum_of_outer_products
from refimpl.model.stream import Stream
from refimpl.pruners.sparsegpt import hessian
from refimpl.running.settings import Settings
from refimpl.running.threads import Workers
from refimpl.scoring.dense_statistics import dense_squares, sums_of_all, wanda_moments
from refimpl.scoring.signals import Chosen, of_moments
from refimpl.tokens import id_tokens

Fit = Literal["peak", "mid"]


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
    # Measured: at most 1.9e-6. The peer works in float32 throughout.
    peer = expected()[f"alphapruning_alpha_{fit}"]["alpha_per_linear"]
    assert len(peer) == 28
    for name, alpha in peer.items():
        assert alphas(fit)[name] == pytest.approx(alpha, rel=1e-5), name


def test_a_float32_spectrum_moves_no_start_and_alpha_hardly() -> None:
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


# From our own activations

DLP_FLOAT32 = 1e-7  # relative, of what float32 leaves of the peer's scores; measured 4e-8


@cache
def signals_of(m: float, dtype: str) -> tuple[Array, Array]:
    """OWL's D and DLP's u of the dense model on the calibration set."""
    ids = id_tokens(TINY / "tokens.npy").ids
    assert ids.shape == (8, 32)
    with Settings(dtype, threads=2, memory=1 << 24).open() as resources:
        squares = dense_squares(tiny(), ids, resources)
        moments = wanda_moments(squares, len(ids), tiny().config)
        chosen = Chosen.of(Request("owl", {"m": m}), ["dlp"])
        measured = of_moments(tiny(), chosen, moments, resources)
        return measured["owl"].main, measured["dlp"].main


@cache
def scores_of(base: str, *options: tuple[str, Any]) -> Scores:
    tokens = id_tokens(TINY / "tokens.npy")
    wanted = Request(base, dict(options), compat="peer")
    return score(tiny(), tokens, request=wanted, dtype=np.float64)


@pytest.mark.parametrize(("name", "m"), [("owl", 5.0), ("owl_m3", 3.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_owl_from_our_activations(name: str, m: float, dtype: str) -> None:
    # Outliers are counted: with the same counts the percentages agree to the last bit but one.
    run, (percent, _) = expected()[name], signals_of(m, dtype)
    np.testing.assert_allclose(percent, run["outlier_percent_per_block"], rtol=1e-15)
    s = owl(percent, 0.7, run["lam"], compat="peer")
    np.testing.assert_allclose(s, run["sparsity_per_block"], rtol=0, atol=1e-12)


def test_dlp_from_our_activations() -> None:
    run, (_, score) = expected()["dlp"], signals_of(5.0, "float64")
    np.testing.assert_allclose(score, run["score"], rtol=DLP_FLOAT32)
    s = dlp(score, 0.7, compat="peer")
    np.testing.assert_allclose(s, run["sparsity"], rtol=0, atol=1e-6)


def test_dlp_from_our_activations_in_float32() -> None:
    """A score is linear in the norms of inputs; ours and the peer's are within the gate."""
    (_, score), gate = signals_of(5.0, "float32"), GATES["float32"]
    np.testing.assert_allclose(score, expected()["dlp"]["score"], rtol=2 * gate)


@pytest.mark.parametrize(
    ("run", "base", "options", "key", "tolerance"),
    [
        ("owl", "owl", {"m": 5.0}, "sparsity_per_block", 1e-12),
        ("owl_m3", "owl", {"m": 3.0}, "sparsity_per_block", 1e-12),
        ("dlp", "dlp", {}, "sparsity", 1e-6),
        ("atp", "atp", {"beta": 0.02}, "sparsity", 1e-12),
    ],
)
def test_end_to_end(
    run: str, base: str, options: dict[str, Any], key: str, tolerance: float
) -> None:
    scores = scores_of(base, *options.items())
    assert scores.signals["owl"].options == {"m": options.get("m", 5.0)}
    found = allocate(scores, Request(base, options, compat="peer"))
    np.testing.assert_allclose(found.base_sparsity, expected()[run][key], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.corrected_sparsity, found.base_sparsity)


# LSA: its own code, whole, on the same calibration set

LSA_RUNS = json.loads((TINY / "lsa.json").read_text())["runs"]
LSA_FLOAT32 = 1e-6  # relative, of what float32 leaves of the peer's errors; measured 3.4e-7


@pytest.mark.parametrize("run", LSA_RUNS, ids=lambda run: f"block {run['block']}")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lsa_end_to_end(run: dict[str, Any], dtype: str) -> None:
    base = Request("lsa", {"block": run["block"]}, compat="peer")
    scores = score(tiny(), id_tokens(TINY / "tokens.npy"), request=base, dtype=dtype)
    errors = np.reshape(run["error_per_linear"], (4, 7)).mean(axis=1)
    np.testing.assert_allclose(scores.signals["lsa"].main, errors, rtol=LSA_FLOAT32)
    s = lsa(errors, 0.7, compat="peer")
    np.testing.assert_allclose(s, run["sparsity_per_block"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(allocate(scores, base).base_sparsity, s, rtol=0, atol=1e-6)


@pytest.mark.parametrize("run", LSA_RUNS, ids=lambda run: f"block {run['block']}")
def test_lsa_of_every_linear(run: dict[str, Any]) -> None:
    model, ids = tiny(), id_tokens(TINY / "tokens.npy").ids
    stream, found = Stream(model, dict(enumerate(ids)), np.float64), []
    with Workers(1) as workers:
        for i, linears in enumerate(model.config.linears):
            weights = model.block(i, np.float64)
            after, sums = sums_of_all(stream, weights, sum_of_outer_products, workers)
            stream.advance(after)
            hessians = {point: hessian(total, len(ids)) for point, total in sums.items()}
            found += [
                lsa_error(weights[f"{name}.weight"], hessians[input_of(name)], run["block"])
                for name in linears
            ]
    np.testing.assert_allclose(found, run["error_per_linear"], rtol=LSA_FLOAT32)


@pytest.mark.parametrize("fit", ["peak", "mid"])
def test_alphapruning_end_to_end(fit: Fit) -> None:
    run, scores = expected()[f"alphapruning_alpha_{fit}"], scores_of("alphapruning", ("fit", fit))
    found = allocate(scores, Request("alphapruning", {"fit": fit}, compat="peer"))
    alpha = scores.signals["alphapruning"].main
    # The peer lists the linears of a block in our order.
    np.testing.assert_allclose(alpha.ravel(), list(run["alpha_per_linear"].values()), rtol=1e-5)
    s = list(run["sparsity_per_linear"].values())
    np.testing.assert_allclose(found.linear_sparsity.ravel(), s, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("run", "base", "options"),
    [
        ("wanda", "uniform", ()),
        ("owl_wanda", "owl", (("m", 5.0),)),
        ("alpha_wanda", "alphapruning", (("fit", "peak"),)),
    ],
)
def test_counts_are_those_of_the_peers_pruned_models(
    run: str, base: str, options: tuple[tuple[str, Any], ...]
) -> None:
    kept = np.load(TINY / "keep.npz")
    scores = scores_of("owl" if base == "uniform" else base, *options)
    found = allocate(scores, Request(base, dict(options), compat="peer"))
    for i in range(scores.num_blocks):
        for j, name in enumerate(scores.linears[i]):
            part = "self_attn" if name[0] in "qkvo" else "mlp"
            key = f"{run}|{i}/{part}.{name}"
            size = prod(kept[f"{key}|shape"].tolist())
            assert size == scores.linear_sizes[i, j]
            ones = int(np.unpackbits(kept[key])[:size].sum())
            assert found.linear_pruned[i, j] == size - ones, key
