"""Numbers that the peers' own code gave for a tiny Llama, and ours for the same input."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from gates import GATES
from peer_numbers import PEERS, TINY, expected, tiny

from refimpl import Request, Scores, allocate, score
from refimpl.bases.alphapruning import alphapruning
from refimpl.loading.samples import id_tokens

LSA = {
    f"lsa {run['block']}": run
    for run in json.loads((TINY / "lsa.json").read_text())["runs"]
}
DLP_FLOAT32 = 1e-7  # what float32 leaves of the peer's densities, and of its scores; measured 4e-8
LSA_FLOAT32 = 1e-6  # relative, of what it leaves of the peer's errors; measured 3.4e-7
ALPHA = 1e-5  # the peer fits in float32 throughout; measured at most 1.9e-6
# A run of the peer: our request, the key and the tolerance of its signal and of its sparsities.
RUNS: dict[str, tuple[str, dict[str, Any], str, dict[str, float], str, float]] = {
    # Outliers are counted: with the same counts the percentages agree to the last bit but one.
    "owl": (
        "owl",
        {"m": 5.0},
        "outlier_percent_per_block",
        {"float32": 1e-15, "float64": 1e-15},
        "sparsity_per_block",
        1e-12,
    ),
    "owl_m3": (
        "owl",
        {"m": 3.0},
        "outlier_percent_per_block",
        {"float32": 1e-15, "float64": 1e-15},
        "sparsity_per_block",
        1e-12,
    ),
    # A score is linear in the norms of inputs; ours and the peer's are within the gate.
    "dlp": (
        "dlp",
        {},
        "score",
        {"float32": 2 * GATES["float32"], "float64": DLP_FLOAT32},
        "sparsity",
        1e-6,
    ),
    "atp": ("atp", {"beta": 0.02}, "", {"float64": 0}, "sparsity", 1e-12),
    **{
        f"alphapruning_alpha_{fit}": (
            "alphapruning",
            {"fit": fit},
            "alpha_per_linear",
            {"float64": ALPHA},
            "sparsity_per_linear",
            1e-6,
        )
        for fit in ("peak", "mid")
    },
    **{
        name: (
            "lsa",
            {"block": run["block"]},
            "error_per_linear",
            {"float32": LSA_FLOAT32, "float64": LSA_FLOAT32},
            "sparsity_per_block",
            1e-6,
        )
        for name, run in LSA.items()
    },
}


def numbers(run: str, key: str) -> Any:
    """Numbers of a run of the peer, whose linears are in our order."""
    found = (expected() | LSA)[run][key]
    return (
        found
        if isinstance(found, float)
        else np.array([*getattr(found, "values", found.copy)()])
    )


@cache
def scores_of(base: str, dtype: str, *options: tuple[str, Any]) -> Scores:
    tokens = id_tokens(TINY / "tokens.npy")
    return score(
        tiny(),
        tokens,
        request=Request(base, dict(options), correct=None, compat="peer"),
        dtype=dtype,
    )


@pytest.mark.parametrize(
    ("run", "dtype"), [(run, dtype) for run, row in RUNS.items() for dtype in row[3]]
)
def test_end_to_end(run: str, dtype: str) -> None:
    base, options, signal, relative, key, tolerance = RUNS[run]
    scores = scores_of(base, dtype, *options.items())
    if signal:
        ours, theirs = scores.signals[base].main, numbers(run, signal)
        theirs = theirs.reshape(4, 7).mean(axis=1) if base == "lsa" else theirs
        np.testing.assert_allclose(ours.ravel(), theirs, rtol=relative[dtype])
    found = allocate(scores, Request(base, options, 0.7, correct=None, compat="peer"))
    per_linear = base == "alphapruning"
    s = found.linear_sparsity.ravel() if per_linear else found.base_sparsity
    if dtype == "float64" or base != "dlp":
        np.testing.assert_allclose(s, numbers(run, key), rtol=0, atol=tolerance)
    np.testing.assert_array_equal(found.corrected_sparsity, found.base_sparsity)


@pytest.mark.parametrize(
    "model",
    ["llama-7b-hf", "llama-13b-hf", "llama2-7b-hf", "llama2-13b-hf", "llama2-70b-hf"],
)
def test_alphapruning_allocation_of_the_shipped_llama_alphas(model: str) -> None:
    run = json.loads((PEERS / "alphapruning_llama.json").read_text())[model]
    sizes = [1] * len(run["block_alpha"])
    s = alphapruning(run["block_alpha"], sizes, run["S"], run["epsilon"], compat="peer")
    np.testing.assert_allclose(s, run["block_sparsity"], rtol=0, atol=1e-7)
