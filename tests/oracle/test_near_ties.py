"""Near ties, and how far errors of earlier steps move later ones."""

import fnmatch
from pathlib import Path

import numpy as np
import pytest
from candidates import StoredModel, computed, written
from crafted_cases import changed_case, copied_tensors
from gates import case_of, model_of

from refimpl.loading.samples import Tokens
from refimpl.method.correction import centred_log
from refimpl.method.projection import project
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, case_inputs, computed_case, make_case, stepwise_steps
from refimpl.oracle.check import check
from refimpl.oracle.dense_steps import Keep, unpacked
from refimpl.oracle.measures import error_of
from refimpl.oracle.near_ties import (
    count_ties,
    keep_ties,
    near_ties,
    outlier_ties,
    reach,
    rounding_ties,
    score_behind,
    turnable,
    without_rounding,
)
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import ARITHMETIC
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
    if pruner not in ("pruned", "wanda"):
        return
    score = score_behind(truth_of(mixture, {}, "float16"), step)[0]
    keep = unpacked(mixture.expected[step], score.shape[1])
    gaps = np.where(keep, score, np.inf).min(1) / np.where(keep, 0, score).max(1)
    row = int(np.argmin(gaps))
    stays, goes = (at for _, at in nearest(keep[[row]], score[[row]]))
    keep[row, [stays, goes]] = False, True
    turned = {step: np.packbits(keep, axis=1)}
    (result,) = check(mixture, turned, (step,), "float16").steps
    assert (result.status, len(result.near_ties)) == ("pass", 2)


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
    bits = np.packbits(truth, axis=1)
    assert [turnable(bits, score, 0, np.array([x])) for x in (1e-6, 1e-9)] == [2, 0]


def test_an_outlier_on_the_line_may_fall_either_way() -> None:
    x = np.append(np.ones(99), 0.0)
    x = np.append(x, 3 * np.append(x, 0).sum() / 98)  # the last is 3 times the mean, to rounding
    m = float(x[-1] / x.mean()) * (1 - 1e-8)
    truth = np.array([100 / 101])
    assert outlier_ties(np.zeros(1), truth, iter([x]), m, 1e-5, 1e-6, 1e-3) == ((0,),)
    assert outlier_ties(np.zeros(1), truth, iter([x]), m, 1e-5, 1e-9, 1e-3) == ()
    assert outlier_ties(np.zeros(1), truth, iter([x]), m, 1.0, 1e-6, 1e-3) == ((0,),)  # on the edge


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
    assert turnable(bits, score, 2, relative) == 2
    assert turnable(bits, score, 2, np.full(4, 0.2)) == 4

    case, step = case_of("gpt2"), "wanda.blocks.1.down_proj.keep"
    _, _, slack = score_behind(truth_of(case, {}, "float32"), step)
    carried = np.sqrt(case.expected["wanda.blocks.1.mlp_hidden.squares"])
    typical = np.sqrt(np.mean(np.square(carried)))
    assert carried.min() < typical / 2
    assert slack.shape == carried.shape
    assert slack * np.minimum(carried, typical) == pytest.approx(slack.min() * typical)
    given = score_behind(truth_of(case, dict(case.expected), "float32"), step)[2]
    assert given.shape == (1,)  # the candidate wrote the sums that it decided on


def test_a_signal_without_its_states_is_off_by_the_errors_of_these(tmp_path: Path) -> None:
    """With sharp attention those of float16 grow; on states that were written they do not count."""
    tensors = copied_tensors("llama")
    for name, x in tensors.items():
        x *= (30 if "q_proj" in name or "k_proj" in name else 3) if "_proj" in name else 1
    ids, recipe = np.random.default_rng(7).integers(8, 64, (1, 4)), Recipe(bases=("owl",))
    case = changed_case("llama", tensors, tmp_path, ids, recipe)
    inputs = case_inputs(case, rounded=ARITHMETIC["float16"])
    right, step = written(case, every_array(inputs), "float16"), "dlp.signal"
    states = {k: x for k, x in right.items() if k.endswith("resid_pre")}
    sums, median = "pruned.blocks.3.mlp_norm.squares", inputs.signal("dlp_median").main
    for before, stepwise in (({}, False), (states, True)):
        for name, value in ((step, right[step]), (step, median), (sums, right[sums])):
            (result,) = check(case, {name: value, **before}, (name,), "float16").steps
            assert result.status == ("divergent" if value is median else "pass")
            assert result.own == own_errors(case, "float16", stepwise)[name]


@pytest.mark.thorough
def test_signals_follow_the_experts_of_their_tokens(mixture: Case) -> None:
    """In 16 bits a candidate that did not write them may have routed a token to another one."""
    steps_of = ("owl.signal", "dlp.signal", "pruned.blocks.2.attn_norm.squares")
    wrong = {x: 2 * mixture.expected[x] for x in steps_of}
    states = {x: y for x, y in mixture.expected.items() if x.endswith(("resid_pre", "router.keep"))}
    for actual, status in ((wrong, "conditional"), (wrong | states, "divergent")):
        judged = check(mixture, actual, steps_of, "bfloat16").steps
        assert {x.status for x in judged} == {status}


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


@pytest.mark.parametrize("stepwise", [pytest.param(True, marks=pytest.mark.thorough), False])
@pytest.mark.parametrize("dtype", [pytest.param("float64", marks=pytest.mark.thorough), "float32"])
def test_of_a_block_that_loses_nothing_rounding_may_be_left(dtype: str, stepwise: bool) -> None:
    """Two passes of another batch differ by rounding: a drift next to 0, and a ratio of two."""
    tokens = Tokens(IDS, "drawn uniformly with seed 0", "ids")
    recipe = Recipe(bases=("dlp",), draws=1, pattern="", sparsity=0.02)
    case = computed_case(model_of("llama"), tokens, recipe)
    drift, ratio = "pruned.0.drift", "pruned.absorption_coefficient"
    assert not case.expected[drift].any()
    assert np.isnan(case.expected[ratio]).tolist() == [True, True, False, False]
    arrays = stepwise_steps(case, dtype) if stepwise else steps(case.model, IDS, recipe, dtype)
    right, unit = written(case, arrays, dtype), np.finfo(dtype).eps
    for name in (drift, "pruned.1.drift"):
        right[name] = np.full(len(case.expected[name]), unit / 4)
    right[ratio] = np.where(np.isnan(case.expected[ratio]), 0.7, case.expected[ratio])
    report = check(case, right, dtype=dtype, stepwise=stepwise)
    assert (report.verdict, report.first) == ("pass", None)
    truth = truth_of(case, right, dtype, stepwise)  # where rounding is left in the truth, too
    left = np.full(4, unit / 8)
    truth.values.update({drift: left, ratio: np.array([1.5, np.nan, 1.0, 1.0])})
    found = without_rounding(truth)
    assert (found[drift] == left).all()
    assert found[ratio][0] == 1.5

    one, other = (right | {ratio: right[ratio] * x} for x in ([1, 1, 1.1, 1], [1, 1, 1, 1.1]))
    number = right | {drift: np.zeros(4)}  # exactly 0, by which nothing is divided
    far = right | {drift: np.full(4, 1e4 * unit)}
    for wrong, step in ((one, ratio), (other, ratio), (number, ratio), (far, drift)):
        first = check(case, wrong, dtype=dtype, stepwise=stepwise).first
        assert first is not None
        assert first.step == step


def test_an_input_that_rounding_leaves_nothing_of_may_be_dead(tmp_path: Path) -> None:
    """gelu(-5.5) is -6e-9 in float64 and 0 in float32; SparseGPT then gives the input up."""
    tensors = copied_tensors("gpt2")
    for i in range(2):
        tensors[f"transformer.h.{i}.mlp.c_fc.weight"][:, 3] = 0
        tensors[f"transformer.h.{i}.mlp.c_fc.bias"][3] = -5.5
    recipe = Recipe(bases=("owl",), draws=1, pattern="")
    case = changed_case("gpt2", tensors, tmp_path, IDS, recipe)
    step = "sparsegpt.blocks.0.down_proj.keep"
    rounded = steps(case.model, IDS, case.recipe, np.float32)
    right, keep = (np.unpackbits(x[step], axis=1) for x in (case.expected, rounded))
    assert right[:, 3].any()
    assert not keep[:, 3].any()
    (alone,) = check(case, {step: rounded[step]}, (step,), "float32").steps
    assert alone.status != "divergent"  # it did not write the products that it decided on
    (result,) = check(case, rounded, (step,), "float32").steps
    assert (result.status, result.near_ties) == ("pass", ())
    score = score_behind(truth_of(case, rounded, "float32"), step)[0]
    keep[np.unravel_index(np.argmax(score), score.shape)] ^= 1  # and what no rounding turns
    (wrong,) = check(case, rounded | {step: np.packbits(keep, axis=1)}, (step,), "float32").steps
    assert wrong.status == "divergent"


@pytest.mark.parametrize(("sparsity", "dtype"), [(0.0, "float16"), (0.05, "bfloat16")])
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
    model = StoredModel.of(case.model, ARITHMETIC[dtype])
    right = written(case, steps(model, IDS, recipe, np.float32), dtype)
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
