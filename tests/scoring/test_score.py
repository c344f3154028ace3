"""What `score` refuses, reports as progress and leaves alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import FIXTURES
from gates import model_of
from safetensors.numpy import load_file, save_file

from refimpl import Model, Perturbation, RefimplError, Request, forward, read_model, score
from refimpl.tokens import Tokens, random_tokens

LLAMA, TOKENS = model_of("llama"), random_tokens(200, 2, 9)


def test_too_little_memory_says_what_would_do() -> None:
    enough = 3 * 9 * LLAMA.config.hidden_size * 4
    with pytest.raises(RefimplError, match=f"--memory {enough}"):
        score(LLAMA, TOKENS, memory=enough - 1)
    assert not np.isnan(score(LLAMA, TOKENS, memory=enough).sweep[0].coefficient[0])


def test_scoring_changes_neither_ids_nor_request() -> None:
    request, before = Request("owl", {"m": 3.0}), TOKENS.ids.copy()
    scores = score(LLAMA, TOKENS, request=request)
    np.testing.assert_array_equal(TOKENS.ids, before)
    assert request == Request("owl", {"m": 3.0})
    assert (scores.tokens.samples, scores.tokens.seq_len) == before.shape
    assert scores.tokens.sha256 == TOKENS.sha256


@pytest.mark.parametrize(
    ("tokens", "options", "problem"),
    [
        (TOKENS, {"request": Request(correct="arrival")}, "--perturbation pruning"),
        (TOKENS, {"request": Request(correct="divergence")}, "--perturbation pruning"),
        (TOKENS, {"dtype": np.float16}, "float32 or float64"),
        (Tokens(np.array([[264]]), "by hand", "ids"), {}, "vocabulary"),
        (Tokens(np.zeros((1, 65), np.int64), "by hand", "ids"), {}, "65 tokens"),
    ],
)
def test_refused(tokens: Tokens, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(RefimplError, match=problem):
        score(LLAMA, tokens, **options)


def llama_with(change: Callable[[str, npt.NDArray[Any]], npt.NDArray[Any]], folder: Path) -> Model:
    """The fixture with weights changed by name."""
    weights = load_file(FIXTURES / "llama" / "model.safetensors")
    changed = {name: change(name, weight.copy()) for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors")
    shutil.copy(FIXTURES / "llama" / "config.json", folder)
    return read_model(folder)


@pytest.mark.parametrize(("dtype", "huge"), [("float32", 1e30), ("float64", 1e200)])
def test_activations_beyond_the_dtype_are_an_error_not_a_warning(
    dtype: str, huge: float, tmp_path: Path
) -> None:
    def change(name: str, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return weight.astype(np.float64) * (huge if name.endswith("down_proj.weight") else 1)

    model = llama_with(change, tmp_path)
    for run in (
        lambda: forward(model, [[1, 2, 3]], dtype=dtype),
        lambda: score(model, random_tokens(264, 2, 4), dtype=dtype),
    ):
        with (
            np.errstate(all="warn"),
            pytest.raises(RefimplError, match=f"beyond the range of {dtype}"),
        ):
            run()


@pytest.mark.parametrize("damaged", ["model.embed_tokens.weight", "lm_head.weight"])
def test_nan_outside_the_blocks_is_refused_by_name(damaged: str, tmp_path: Path) -> None:
    def change(name: str, weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if name == damaged:
            weight[-1, 0] = np.nan  # of an id that is not used
        return weight

    model = llama_with(change, tmp_path)
    for run in (
        lambda: forward(model, [[1, 2, 3]]),
        lambda: score(model, random_tokens(200, 2, 4)),
    ):
        with pytest.raises(RefimplError, match=f"{damaged}.* 1 "):
            run()


@pytest.mark.parametrize("base", ["uniform", "alphapruning"])
def test_progress_starts_with_the_signals_and_ends_at_the_whole(base: str) -> None:
    seen: list[tuple[float, float]] = []
    model = model_of("gemma3")
    score(
        model,
        random_tokens(model.config.vocab_size, 2, 8),
        Perturbation("pruning"),
        Request(base=base, correct="divergence"),
        progress=lambda done, total: seen.append((done, total)),
    )
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert done[0] > 0
    assert seen[-1][0] == pytest.approx(seen[-1][1])
    assert all(d <= total * (1 + 1e-12) for d, total in seen)


def test_pruning_has_no_eta() -> None:
    for plan in (Perturbation("pruning"), Perturbation("pruning", eta=(0.1, 0.2))):
        assert plan.eta == ()
        assert plan == Perturbation("pruning")
    with pytest.raises(RefimplError, match="eta -1"):
        Perturbation("pruning", eta=(-1.0,))
