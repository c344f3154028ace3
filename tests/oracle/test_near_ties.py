"""Near ties, and how far errors of earlier steps move later ones."""

import fnmatch
from pathlib import Path

import numpy as np
import pytest
from candidates import computed, written
from gates import case_of, model_of

from refimpl.loading.samples import Tokens
from refimpl.method.correction import centred_log
from refimpl.method.projection import project
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, case_inputs, computed_case, make_case
from refimpl.oracle.check import check
from refimpl.oracle.dense_steps import Keep, unpacked
from refimpl.oracle.measures import error_of
from refimpl.oracle.near_ties import (
    count_ties,
    keep_ties,
    near_ties,
    reach,
    rounding_ties,
    score_behind,
    without_rounding,
)
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.steps import every_array, steps
from refimpl.oracle.truth import moved_by, own_errors, truth_of
from refimpl.pruners.counts import counts, split_count

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
    score, *_ = score_behind(truth_of(case, actual, "float32"), step)
    stays, goes = nearest(unpacked(case.expected[step], score.shape[1])[:1], score[:1])
    near = actual[sums].astype(np.float64)
    near[goes[1]] *= np.square(score[stays] / score[goes] * (1 - 1e-7))
    for squares, status in ((actual[sums], "divergent"), (near, "pass")):
        keep = unpacked(truth_of(case, {sums: squares}, "float32").values[step], score.shape[1])
        assert (keep[stays], keep[goes]) == (True, False)
        keep[stays], keep[goes] = False, True
        wrong = {sums: squares, step: np.packbits(keep, axis=1)}
        (result,) = check(case, wrong, (step,), "float32").steps
        assert result.status == status
        assert set(result.near_ties) == ({stays, goes} if status == "pass" else set())
    own = {step: wrong[step]}
    follows = written(case, every_array(case_inputs(case, own, np.float32)) | own, "float32")
    found = check(case, follows, ("wanda.*", "pattern.*"))
    assert [x.step for x in found.steps if x.status != "pass"] == [step]


@pytest.fixture(scope="module")
def mixture() -> Case:
    tokens = Tokens(IDS, "drawn uniformly with seed 0", "ids")
    return computed_case(model_of("mixtral"), tokens, Recipe(bases=("owl",), draws=1))


@pytest.mark.parametrize("pruner", ["pruned", "wanda", "sparsegpt", "sparsegpt_pattern"])
def test_a_decision_of_an_expert_is_judged_as_any_other(mixture: Case, pruner: str) -> None:
    step = f"{pruner}.blocks.1.experts.1.down_proj.keep"
    wrong = mixture.expected[step].copy()
    wrong[0, 0] ^= 0x81
    (result,) = check(mixture, {step: wrong}, (step,), "float32").steps
    assert (result.status, result.near_ties) == ("divergent", ())


def test_only_as_many_as_are_within_rounding_are_ties() -> None:
    truth = np.array([[True, True, False, False]])
    score = np.array([[2.0, 1.0, 1.0 - 1e-7, 0.5]])
    assert near_ties(np.array([[True, False, True, False]]), truth, score, 1e-6).sum() == 2
    assert near_ties(np.array([[False, True, True, False]]), truth, score, 1e-6).sum() == 1
    assert near_ties(np.array([[True, False, False, True]]), truth, score, 1e-6).sum() == 1
    low, high = reach(np.array([3.0, 1.0]), np.array([0.75, 1.0]))
    assert (low.tolist(), high.tolist()) == ([1.5, 0.0], [6.0, np.inf])


def test_counts_are_near_ties_only_within_rounding() -> None:
    """All counts that rounded sparsities lead to, and no others."""
    generator, sizes = np.random.default_rng(0), np.array([30, 50, 20])
    accepted = 0
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
            places = count_ties(rounded, truth, sparsity, np.tile(sizes, (4, 1)), 0.5, size)
            assert len(places) == (rounded != truth).sum()
        wrong = rounded.copy()
        for i, more in enumerate((2, -2)):
            wrong[i] = split_count(int(rounded[i].sum()) + more, sizes)
        assert not count_ties(wrong, truth, sparsity, np.tile(sizes, (4, 1)), 0.5, 1e-3)
    assert accepted > 5


def linear_counts(sparsity: Array, sizes: Array) -> Array:
    whole = np.full(len(sparsity), int(sizes.sum()))
    return np.stack([split_count(int(n), sizes) for n in counts(sparsity, whole, 0.5)])


def test_rows_may_change_places_where_wanda_takes_one_more() -> None:
    score = np.array([[1.0, 5.0, 6.0], [1.0 + 1e-7, 7.0, 8.0], [2.0, 3.0, 4.0]])
    truth = np.array([[False, True, True], [True, True, True], [True, True, True]])

    def all_tied(keep: Array, relative: float) -> bool:
        return bool((near_ties(keep, truth, score, relative) == (keep != truth)).all())

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
        (result,) = check(case, {"owl.signal": right + more * one}, ("owl.signal",)).steps
        assert result.status == status


def test_a_stored_weight_may_be_one_unit_off() -> None:
    truth, half = np.array([[1.0, 2.0]]), np.dtype(np.float16)
    for off, ties in ((2**-9, ((0, 1),)), (2**-8, ())):
        assert rounding_ties(np.array([[1.0, 2.0 + off]]), truth, half, 1e-6) == ties


def test_an_input_that_carries_little_is_off_by_more() -> None:
    """Of two inputs as near to each other, only the one that rounding reaches may change places."""
    score = np.array([[1.0, 1.1, 8.0, 8.8]])
    truth = np.array([[False, True, False, True]])
    other, bits = ~truth, np.packbits(truth, axis=1)
    relative = np.array([0.2, 0.2, 1e-6, 1e-6])
    groups = (x.reshape(2, 2) for x in (other, truth, score, relative))
    assert near_ties(*groups).tolist() == [[True, True], [False, False]]
    turned = np.where([[True, True, False, False]], other, truth)
    assert len(keep_ties(np.packbits(turned, axis=1), bits, score, 2, relative)) == 2
    assert keep_ties(np.packbits(other, axis=1), bits, score, 2, relative) == ()

    case, step = case_of("gpt2"), "wanda.blocks.1.down_proj.keep"
    _, _, slack = score_behind(truth_of(case, {}, "float32"), step)
    carried = np.sqrt(case.expected["wanda.blocks.1.mlp_hidden.squares"])
    typical = np.sqrt(np.mean(np.square(carried)))
    assert carried.min() < typical / 2
    assert slack.shape == carried.shape
    assert slack * np.minimum(carried, typical) == pytest.approx(slack.min() * typical)
    given = score_behind(truth_of(case, dict(case.expected), "float32"), step)[2]
    assert given.shape == (1,)  # the candidate wrote the sums that it decided on


def test_a_function_moves_with_its_arguments() -> None:
    x = np.array([3.0, 1.0])
    assert moved_by(lambda v: v, x, 1e-3) == pytest.approx(1e-3)
    assert moved_by(lambda v: v[:1] - v[1:], x, 1e-6) == pytest.approx(2e-6, rel=1e-3)
    assert moved_by(lambda v: np.zeros(1) * v, x, 0.1) == 0
    assert moved_by(lambda v: v - 3, x, 1e-6) == pytest.approx(1.5e-6)  # of the largest, -2
    assert moved_by(lambda v: v - v, x, 1e-6) == 0
    assert moved_by(lambda v: v, x, np.inf) == pytest.approx(1)


def test_a_block_that_loses_nothing_does_not_hide_that_the_others_differ() -> None:
    """It has no drift, and the divergence of another one is as far resolved as without it."""
    sparsity, tokens = 0.02, Tokens(IDS, "drawn uniformly with seed 0", "ids")
    case = computed_case(model_of("llama"), tokens, Recipe(bases=("dlp",), sparsity=sparsity))
    drifts = [case.expected[x] for x in fnmatch.filter(case.expected, "pruned.*.drift")]
    assert min(x.min() for x in drifts) == 0
    least = min(x[x > 0].min() for x in drifts if x.any())
    errors = own_errors(case, "float32")
    rho = max(x for name, x in errors.items() if name.endswith(".resid_post"))
    size = case.expected["blocks.0.resid_post"].size
    assert errors["pruned.divergence"] >= 2 * (2 / size) ** 0.5 * rho / least
    logit = errors["logits"] * np.sqrt(np.mean(np.square(case.expected["logits"])))
    nats = case.expected["pruned.divergence"].max()
    assert errors["pruned.divergence"] >= 2 * logit / np.sqrt(nats * IDS.size) * 0.999


@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.thorough), "float32"])
def test_of_a_block_that_loses_nothing_rounding_may_be_left(dtype: str) -> None:
    """Two passes of another batch differ by rounding: a drift next to 0, and a ratio of two."""
    tokens = Tokens(IDS, "drawn uniformly with seed 0", "ids")
    recipe = Recipe(bases=("dlp",), draws=1, pattern="", sparsity=0.02)
    case = computed_case(model_of("llama"), tokens, recipe)
    drift, ratio = "pruned.0.drift", "pruned.absorption_coefficient"
    assert not case.expected[drift].any()
    assert np.isnan(case.expected[ratio]).tolist() == [True, True, False, False]
    arrays = steps(case.model, IDS, recipe, dtype)
    right, unit = written(case, arrays, dtype), np.finfo(dtype).eps
    for name in (drift, "pruned.1.drift"):
        right[name] = np.full(len(case.expected[name]), unit / 4)
    right[ratio] = np.where(np.isnan(case.expected[ratio]), 0.7, case.expected[ratio])
    report = check(case, right, dtype=dtype)
    assert (report.verdict, report.first) == ("pass", None)
    truth = truth_of(case, right, dtype)  # where rounding is left in the truth, too
    left = np.full(4, unit / 8)
    truth.values.update({drift: left, ratio: np.array([1.5, np.nan, 1.0, 1.0])})
    found = without_rounding(truth)
    assert (found[drift] == left).all()
    assert found[ratio][0] == 1.5

    one, other = (right | {ratio: right[ratio] * x} for x in ([1, 1, 1.1, 1], [1, 1, 1, 1.1]))
    number = right | {drift: np.zeros(4)}  # exactly 0, by which nothing is divided
    far = right | {drift: np.full(4, 1e4 * unit)}
    for wrong, step in ((one, ratio), (other, ratio), (number, ratio), (far, drift)):
        first = check(case, wrong, dtype=dtype).first
        assert first is not None
        assert first.step == step


@pytest.mark.parametrize(("sparsity", "dtype"), [(0.0, "float32"), (0.05, "float32")])
def test_a_block_that_is_not_pruned_has_a_finite_tolerance(
    sparsity: float, dtype: str, tmp_path: Path
) -> None:
    """Its sparsity is 0, so nothing is measured in units of it."""
    recipe = Recipe(sparsity=sparsity, bases=("owl", "uniform"), draws=1, pattern="")
    tokens = Tokens(IDS, "drawn uniformly", "ids")
    case = make_case(model_of("llama"), tokens, recipe, tmp_path / "c")
    limits, ends = truth_of(case, {}, dtype), ("base", "corrected")
    each = [limits.tolerance(f"{base}.{x}") for base in recipe.bases for x in ends]
    assert np.isfinite(each).all()
    right = written(case, steps(case.model, IDS, recipe, np.float32), dtype)
    assert check(case, right).first is None
    far = right | {"owl.corrected": np.full(4, 0.9)}
    first = check(case, far, ("owl.corrected",), dtype=dtype).first
    assert first is not None


def test_a_divergence_that_should_be_zero_is_measured_in_nats() -> None:
    """One of several as a share of the largest."""
    step, none = "pruned.divergence", np.zeros(3)
    assert error_of(step, np.array([0, 1e-9, 0]), none)[0] == 1e-9
    assert error_of(step, np.array([0, 1e-9, 2]), np.array([0, 0, 2.0]))[0] == 5e-10


def test_a_correction_is_judged_by_the_divergences_that_it_is_made_of() -> None:
    """A block without a divergence is corrected as the average, and one with next to none is not.

    As a share of the largest, 1e-9 is nothing.
    """
    case, step, correction = case_of("llama"), "pruned.divergence", "divergence.corrected"
    truth = case.expected[step].copy()
    truth[1] = 0.0
    found = np.where(truth == 0, 1e-9 * truth.max(), truth)
    right, own = ({**case.expected, step: x} for x in (truth, found))
    for arrays in (right, own):
        inputs = case_inputs(case, arrays)
        u, name = centred_log(inputs.correction("divergence")[0]), case.recipe.bases[0]
        arrays[correction] = inputs.allocated(name, inputs.base(name), u).corrected_sparsity
    assert np.abs(right[correction] - own[correction]).max() > 0.01
    for arrays in (right, own):
        (result,) = check(case, arrays, (correction,), "float64").steps
        assert result.status == "pass"
        crossed = {**arrays, step: own[step] if arrays is right else right[step]}
        (result,) = check(case, crossed, (correction,), "float64").steps
        assert result.status == "divergent"
    for other in (truth[:, None], truth[:0], np.full(4, np.nan)):  # nothing follows from them
        misshapen = {**own, step: other}
        statuses = {one.step: one.status for one in check(case, misshapen, dtype="float64").steps}
        assert statuses[step] == statuses[correction] == "divergent"
