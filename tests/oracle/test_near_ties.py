"""Near ties, and how far errors of earlier steps move later ones."""

import fnmatch
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from candidates import computed, written
from gates import case_of, model_of

from refimpl.errors import RefimplError
from refimpl.loading.samples import Tokens
from refimpl.method.projection import project
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, case_inputs, computed_case
from refimpl.oracle.check import (
    check,
    count_ties,
    keep_ties,
    rounding_ties,
    score_behind,
)
from refimpl.oracle.dense_steps import Keep, unpacked
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.steps import every_array
from refimpl.oracle.truth import moved_by, moved_by_rounding, own_errors, truth_of
from refimpl.pruners.counts import counts, parse_pattern, pattern_keep, split_count
from refimpl.pruners.wanda import wanda_keep

IDS = np.random.default_rng(0).integers(8, 64, (2, 16))


def nearest(keep: Keep, score: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where the lowest score that stays is, and the highest that goes."""
    stays = np.argmin(np.where(keep, score, np.inf))
    goes = np.argmax(np.where(keep, -1.0, score))
    (a, b), (c, d) = (np.unravel_index(int(x), keep.shape) for x in (stays, goes))
    return (int(a), int(b)), (int(c), int(d))


def test_a_near_tie_may_go_either_way_and_is_listed() -> None:
    """Of the candidate's own scores; and what follows is judged on its own choice."""
    case, step, sums = (
        case_of("llama"),
        "wanda.blocks.1.q_proj.keep",
        "wanda.blocks.1.attn_norm.squares",
    )
    actual = computed("llama")
    score, *_ = score_behind(
        truth_of(case, actual, "float32"), step, case.expected[step]
    )
    stays, goes = nearest(unpacked(case.expected[step], score.shape[1])[:1], score[:1])
    near = actual[sums].astype(np.float64)
    near[goes[1]] *= np.square(score[stays] / score[goes] * (1 - 1e-7))
    for squares, status in ((actual[sums], "divergent"), (near, "pass")):
        keep = unpacked(
            truth_of(case, {sums: squares}, "float32").values[step], score.shape[1]
        )
        assert (keep[stays], keep[goes]) == (True, False)
        keep[stays], keep[goes] = False, True
        wrong = {sums: squares, step: np.packbits(keep, axis=1)}
        (result,) = check(case, wrong, (step,), "float32").steps
        assert result.status == status
        assert set(result.near_ties) == ({stays, goes} if status == "pass" else set())
    own = {step: wrong[step]}
    follows = written(
        case, every_array(case_inputs(case, own, np.float32)) | own, "float32"
    )
    found = check(case, follows, ("wanda.*", "pattern.*"))
    assert [x.step for x in found.steps if x.status != "pass"] == [step]


@pytest.fixture(scope="module")
def mixture() -> Case:
    tokens = Tokens(IDS, "drawn uniformly with seed 0", "ids")
    return computed_case(model_of("mixtral"), tokens, Recipe(bases=("owl",), draws=1))


@pytest.mark.parametrize(
    "pruner", ["pruned", "wanda", "sparsegpt", "sparsegpt_pattern"]
)
def test_a_decision_of_an_expert_is_judged_as_any_other(
    mixture: Case, pruner: str
) -> None:
    step = f"{pruner}.blocks.1.experts.1.down_proj.keep"
    wrong = mixture.expected[step].copy()
    wrong[0, 0] ^= 0x81
    (result,) = check(mixture, {step: wrong}, (step,), "float32").steps
    assert (result.status, result.near_ties) == ("divergent", ())


ROW = partial(wanda_keep, count=2)


def test_only_as_many_as_are_within_rounding_are_ties() -> None:
    score = np.array([[2.0, 1.0, 1.0 - 1e-7, 0.5]])
    assert len(keep_ties(np.array([[True, False, True, False]]), score, 1e-6, ROW)) == 2
    assert keep_ties(np.array([[False, True, True, False]]), score, 1e-6, ROW) == ()
    assert keep_ties(np.array([[True, False, False, True]]), score, 1e-6, ROW) == ()
    dead = np.array([[0.0, 0.0, 0.0, 1.0]])  # equal scores may go either way
    assert len(keep_ties(np.array([[True, False, False, True]]), dead, 1e-6, ROW)) == 2


def test_counts_are_near_ties_only_within_rounding() -> None:
    """All counts that rounded sparsities lead to, and no others."""
    generator, sizes = np.random.default_rng(0), np.array([30, 50, 20])
    accepted, every = 0, np.tile(sizes, (4, 1))
    rule = partial(linear_counts, sizes=sizes)
    for _ in range(300):
        wish = generator.uniform(0.2, 0.8, 4)
        sparsity = project(wish, np.full(4, 100), 0.5)
        truth = linear_counts(sparsity, sizes)
        error = generator.uniform(-1e-3, 1e-3, 4)
        other = project(sparsity * (1 + error), np.full(4, 100), 0.5)
        rounded = linear_counts(other, sizes)
        if (rounded != truth).any():
            accepted += 1
            size = float(np.abs(other - sparsity).max() / sparsity.max()) * 1.001
            places = count_ties(rounded, sparsity, every, size * sparsity.max(), rule)
            assert len(places) == (rounded != truth).sum()
        wrong = rounded.copy()
        for i, more in enumerate((2, -2)):
            wrong[i] = split_count(int(rounded[i].sum()) + more, sizes)
        assert not count_ties(wrong, sparsity, every, 1e-3 * sparsity.max(), rule)
    assert accepted > 5


def linear_counts(sparsity: Array, sizes: Array) -> Array:
    whole = np.full(len(sparsity), int(sizes.sum()))
    return np.stack([split_count(int(n), sizes) for n in counts(sparsity, whole, 0.5)])


def test_rows_may_change_places_where_wanda_takes_one_more() -> None:
    score = np.array([[1.0, 5.0, 6.0], [1.0 + 1e-7, 7.0, 8.0], [2.0, 3.0, 4.0]])
    truth = np.array([[False, True, True], [True, True, True], [True, True, True]])

    def all_tied(keep: Array, relative: float) -> bool:
        rule = partial(wanda_keep, count=int((~truth).sum()))
        return len(keep_ties(keep, score, relative, rule)) == (keep != truth).sum() > 0

    assert all_tied(truth[[1, 0, 2]], 1e-6)
    assert not all_tied(truth[[1, 0, 2]], 1e-8)
    assert not all_tied(truth[[2, 1, 0]], 1e-6)
    assert not all_tied(np.ones((3, 3), np.bool_), 1e-6)

    score = np.array([[1.0, 9.0], [3.0 - 1e-7, 9.0], [3.0, 9.0], [5.0, 9.0]])
    truth = np.array([[False, True], [False, True], [True, True], [True, True]])
    assert all_tied(truth[[0, 2, 1, 3]], 1e-6)
    assert not all_tied(truth[[2, 1, 0, 3]], 1e-6)  # the first is far below the line
    assert not all_tied(truth[[0, 3, 2, 1]], 1e-6)  # the last far above it


def test_an_outlier_on_the_line_may_fall_either_way() -> None:
    case = case_of("llama")
    right, one = case.expected["owl.signal"], 100 / case.model.config.block_sizes
    for more, status in ((1, "pass"), (2, "divergent")):
        (result,) = check(
            case, {"owl.signal": right + more * one}, ("owl.signal",)
        ).steps
        assert result.status == status


def test_a_stored_weight_may_be_one_unit_off() -> None:
    truth, half = np.array([[1.0, 2.0]]), np.dtype(np.float16)
    for off, ties in ((2**-9, ((0, 1),)), (2**-8, ())):
        assert rounding_ties(np.array([[1.0, 2.0 + off]]), truth, half, 1e-6) == ties


def test_an_input_that_carries_little_is_off_by_more() -> None:
    """Of two inputs as near to each other, only the one that rounding reaches may change places."""
    score = np.array([[1.0, 1.1, 8.0, 8.8]])
    other, relative = (
        np.array([[True, False, True, False]]),
        np.array([0.2, 0.2, 1e-6, 1e-6]),
    )
    rule = partial(pattern_keep, pattern=parse_pattern("1:2"))
    turned = np.where([[True, True, False, False]], other, ~other)
    assert len(keep_ties(turned, score, relative, rule)) == 2
    assert keep_ties(other, score, relative, rule) == ()

    case, step = case_of("gpt2"), "wanda.blocks.1.down_proj.keep"
    right = case.expected[step]
    _, slack, _ = score_behind(truth_of(case, {}, "float32"), step, right)
    carried = np.sqrt(case.expected["wanda.blocks.1.mlp_hidden.squares"])
    typical = np.sqrt(np.mean(np.square(carried)))
    assert carried.min() < typical / 2
    assert slack.shape == carried.shape
    assert slack * np.minimum(carried, typical) == pytest.approx(slack.min() * typical)
    given = score_behind(truth_of(case, dict(case.expected), "float32"), step, right)[1]
    assert np.ndim(given) == 0  # the candidate wrote the sums that it decided on

    step = "sparsegpt_pattern.blocks.1.down_proj.keep"  # by what is typical of its row
    score, slack, _ = score_behind(
        truth_of(case, {}, "float32"), step, case.expected[step]
    )
    least = slack / np.maximum(np.sqrt(score.mean(axis=1, keepdims=True) / score), 1)
    assert least == pytest.approx(np.full(score.shape, slack.min()))


def test_weights_of_a_narrower_file_move_the_blocks_after_them() -> None:
    """SparseGPT's weights are rounded as in the file: of a float32 file, float32 is."""
    steps = [f"sparsegpt.blocks.{i}.q_proj.keep" for i in (0, 1)]
    moved = [
        moved_by_rounding(case_of(x), y, "float32")
        for x in ("llama", "mistral")
        for y in steps
    ]
    assert [x > 0 for x in moved] == [False, False, False, True]


def test_a_function_moves_with_its_arguments() -> None:
    x = np.array([3.0, 1.0])
    assert moved_by(lambda v: v, x, 1e-3) == pytest.approx(1e-3)
    assert moved_by(lambda v: v[:1] - v[1:], x, 1e-6) == pytest.approx(2e-6, rel=1e-3)
    assert moved_by(lambda v: np.zeros(1) * v, x, 0.1) == 0
    assert moved_by(lambda v: v - 3, x, 1e-6) == pytest.approx(
        1.5e-6
    )  # of the largest, -2
    assert moved_by(lambda v: v - v, x, 1e-6) == 0
    assert moved_by(lambda v: v, x, np.inf) == pytest.approx(1)


@pytest.mark.parametrize("sparsity", [0.0, 0.02])
def test_a_case_in_which_a_block_loses_nothing_is_refused(sparsity: float) -> None:
    """It has no drift and no coefficient."""
    recipe, tokens = (
        Recipe(bases=("dlp",), sparsity=sparsity),
        Tokens(IDS, "drawn", "ids"),
    )
    with pytest.raises(
        RefimplError, match=r"pruned\.0\.drift is 0: the block loses no weight"
    ):
        computed_case(model_of("llama"), tokens, recipe)


def test_an_own_error_is_at_least_that_of_a_difference_of_states() -> None:
    case, tokens = case_of("llama"), case_of("llama").inputs["token_ids"].size
    drifts = fnmatch.filter(case.expected, "pruned.*.drift")
    least = min(case.expected[x].min() for x in drifts)
    errors = own_errors(replace(case, errors={}), "float32")
    rho = max(x for name, x in errors.items() if name.endswith(".resid_post"))
    size = case.expected["blocks.0.resid_post"].size
    assert errors["pruned.divergence"] >= 2 * (2 / size) ** 0.5 * rho / least
    logit = errors["logits"] * np.sqrt(np.mean(np.square(case.expected["logits"])))
    nats = case.expected["pruned.divergence"].max()
    assert errors["pruned.divergence"] >= 2 * logit / np.sqrt(nats * tokens) * 0.999
