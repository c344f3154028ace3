"""What `score` refuses, reports as progress and leaves alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import altered
from gates import model_of

from refimpl import Perturbation, RefimplError, Request, forward, read_model, score
from refimpl.model.ops import Array
from refimpl.tokens import Tokens, random_tokens

LLAMA, TOKENS = model_of("llama"), random_tokens(200, 2, 9)
STATE = 9 * LLAMA.config.hidden_size * 4  # bytes


def test_too_little_memory_says_what_would_do() -> None:
    enough = 3 * STATE
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


@pytest.mark.parametrize(("dtype", "huge"), [("float32", 1e30), ("float64", 1e200)])
def test_activations_beyond_the_dtype_are_an_error_not_a_warning(
    dtype: str, huge: float, tmp_path: Path
) -> None:
    def change(arrays: dict[str, Array]) -> None:
        for name, weight in arrays.items():
            arrays[name] = weight.astype(np.float64) * (huge if "down_proj" in name else 1)

    model = read_model(altered(tmp_path / "m", "llama", change))
    for run in (
        lambda: forward(model, [[1, 2, 3]], dtype=dtype),
        lambda: score(model, random_tokens(264, 2, 4), dtype=dtype),
    ):
        with np.errstate(all="warn"), pytest.raises(RefimplError) as refused:
            run()
        assert f"beyond the range of {dtype}" in refused.value.problem
        assert dtype == "float64" or "--dtype float64" in refused.value.remedy


@pytest.mark.parametrize("damaged", ["model.embed_tokens.weight", "lm_head.weight"])
def test_nan_outside_the_blocks_is_refused_by_name(damaged: str, tmp_path: Path) -> None:
    def change(arrays: dict[str, Array]) -> None:
        arrays[damaged] = arrays[damaged].copy()
        arrays[damaged][-1, 0] = np.nan  # of an id that is not used

    model = read_model(altered(tmp_path / "m", "llama", change))
    for run in (
        lambda: forward(model, [[1, 2, 3]]),
        lambda: score(model, random_tokens(200, 2, 4)),
    ):
        with pytest.raises(RefimplError, match=f"{damaged}.* 1 "):
            run()


PRUNING = Perturbation("pruning")


@pytest.mark.parametrize("memory", [3 * STATE, None])
@pytest.mark.parametrize(
    ("plan", "request_"),
    [
        (Perturbation(), Request()),
        (Perturbation(eta=(0.1, 1.0), draws=2), Request("alphapruning")),
        (PRUNING, Request()),
        (PRUNING, Request("alphapruning", correct="divergence")),
    ],
)
@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_progress_never_goes_back_and_ends_at_the_total(
    case: str, plan: Perturbation, request_: Request, memory: int | None
) -> None:
    steps: list[tuple[float, float]] = []
    score(
        model_of(case),
        random_tokens(100, 2, 9),
        plan,
        request_,
        memory=memory,
        progress=lambda *step: steps.append(step),
    )
    done, totals = zip(*steps, strict=True)
    assert len(set(totals)) <= (2 if memory else 1)  # the experiment counts its groups anew
    assert all(d <= total * (1 + 1e-12) for d, total in steps)
    assert list(done) == sorted(done)
    assert done[0] > 0
    assert done[-1] == pytest.approx(totals[-1], rel=1e-12)


def test_pruning_has_no_eta() -> None:
    for plan in (Perturbation("pruning"), Perturbation("pruning", eta=(0.1, 0.2))):
        assert plan.eta == ()
        assert plan == Perturbation("pruning")
    with pytest.raises(RefimplError, match="eta -1"):
        Perturbation("pruning", eta=(-1.0,))
