"""The oracle: cases of every family, candidates that are right, and candidates that are not."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from conftest import FIXTURES
from gates import model_of
from program import run
from safetensors.numpy import load_file, save_file

import refimpl.oracle
from refimpl import RefimplError, read_model
from refimpl.allocation.allocate import base_allocation
from refimpl.comparison.causes import usual_causes
from refimpl.method.projection import project
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, make_case, read_case
from refimpl.oracle.check import check
from refimpl.oracle.fed import Fed
from refimpl.oracle.judging.choices import count_ties, outlier_ties
from refimpl.oracle.judging.decisions import keep_ties, near_ties, turnable
from refimpl.oracle.judging.limits import limits_of, moved_by
from refimpl.oracle.judging.measures import judged
from refimpl.oracle.judging.near_ties import score_behind
from refimpl.oracle.judging.own_errors import Own, own_of
from refimpl.oracle.rounding import KINDS, Float16, RoundedModel, rounded_steps
from refimpl.oracle.steps import Recipe, steps
from refimpl.pruners.counts import counts, split_count
from refimpl.pruners.decision import Pruner, decision
from refimpl.show.oracle import report_table, stage_of
from refimpl.tokens import Tokens

CASES = FIXTURES / "cases"
NAMES = sorted(folder.name for folder in CASES.iterdir())
SCHEMA = Path(refimpl.oracle.__file__).parent / "case.schema.json"

Arrays = dict[str, Array]


@cache
def case_of(name: str) -> Case:
    return read_case(CASES / name)


@cache
def computed(name: str, dtype: str) -> Arrays:
    """What refimpl computes in a dtype, written in it."""
    case = case_of(name)
    found = steps(case.model, case.inputs["token_ids"], case.recipe, dtype)
    return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in found.items()}


def test_there_is_a_case_of_every_family() -> None:
    families = {case_of(name).model.config.family for name in NAMES}
    assert len(families) == len(NAMES) == 10
    recipes = [case_of(name).recipe for name in NAMES]
    for choice in ("noise_scale", "noise_shape", "norm", "sink"):
        assert len({getattr(recipe, choice) for recipe in recipes}) == 2
    files = [path for path in CASES.rglob("*") if path.is_file()]
    for name in NAMES:
        size = sum(path.stat().st_size for path in files if path.parent.name == name)
        assert size < 1.5 * 2**20
    assert sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file()) < 20 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_case_json_has_the_published_form(name: str) -> None:
    facts = json.loads((CASES / name / "case.json").read_text("utf-8"))
    jsonschema.validate(facts, json.loads(SCHEMA.read_text("utf-8")))
    assert [step["name"] for step in facts["steps"]] == list(case_of(name).expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_those_of_the_spec(name: str) -> None:
    """Numbers that change need a new `refimpl.version.SPEC`, and cases made again."""
    report = check(case_of(name), computed(name, "float64"))
    assert report.verdict == "pass", (report.first, "a number has changed: raise SPEC")


@pytest.mark.parametrize("name", NAMES)
def test_the_script_makes_the_committed_case(name: str, tmp_path: Path) -> None:
    specification = spec_from_file_location("make_cases", FIXTURES / "make_cases.py")
    assert specification is not None
    assert specification.loader is not None
    script = module_from_spec(specification)
    specification.loader.exec_module(script)
    script.make(name, tmp_path / name)
    old, new = (
        json.loads((folder / name / "case.json").read_text()) for folder in (CASES, tmp_path)
    )
    different = {key for key in old if old[key] != new[key]}
    assert different <= {"model", "versions"}


@pytest.mark.parametrize("name", NAMES)
def test_a_right_candidate_in_float32_passes(name: str) -> None:
    report = check(case_of(name), computed(name, "float32"))
    assert report.verdict == "pass", report.first
    assert report.dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_mistake_is_found_at_its_step(name: str, dtype: str) -> None:
    """One number of each step is off by 1 % (or by one, or one bit): that step is named."""
    actual = computed(name, dtype)
    for step, value in actual.items():
        broken = value.copy()
        flat = broken.reshape(-1)
        at = int(np.argmax(np.abs(flat.astype(np.float64))))
        if value.dtype.kind == "f":
            flat[at] *= 1.01
        else:
            flat[at] ^= 1
        first = check_fast(name, actual | {step: broken}, step)
        assert first is not None, step


def check_fast(name: str, actual: Arrays, only: str) -> object:
    """The first divergent step."""
    first = check(case_of(name), actual, (only,)).first
    return None if first is None else first.step


FAULTS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "NaN": (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.nan, x), "NaN"),
    "Inf": (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.inf, x), "Inf"),
    "zero": (np.zeros_like, "are 0"),
    "shape": (lambda x: x[:1], "shape"),
    "integers": (lambda x: np.rint(x).astype(np.int32), "dtype"),
    "transposed": (lambda x: np.swapaxes(x, 0, 1), "shape"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_called_by_their_names(name: str) -> None:
    broken, word = FAULTS[name]
    actual = dict(computed("llama", "float32"))
    actual["blocks.2.attn_out"] = broken(actual["blocks.2.attn_out"])
    first = check(case_of("llama"), actual).first
    assert first is not None
    assert first.step == "blocks.2.attn_out"
    assert word in first.fault
    assert first.causes("float32")


def test_what_is_missing_is_never_a_pass() -> None:
    actual = dict(computed("llama", "float32"))
    del actual["blocks.1.v"]
    report = check(case_of("llama"), actual)
    assert report.verdict == "inconclusive"
    assert [step.step for step in report.steps if step.status == "missing"] == ["blocks.1.v"]
    assert check(case_of("llama"), actual, ("logits",)).verdict == "pass"
    assert "1 step missing (blocks.1.v); --only" in report_table(report, "a file")
    actual["logits"] = -actual["logits"]
    assert check(case_of("llama"), actual).verdict == "divergent"


def test_a_near_tie_may_go_either_way_and_is_listed() -> None:
    case, actual = case_of("llama"), dict(computed("llama", "float32"))
    step = "wanda.blocks.1.q_proj.keep"
    own = own_of(case, "float32")
    score = own.found[step.replace("keep", "score")].copy()
    keep = np.unpackbits(case.expected[step], axis=1, count=score.shape[1]).astype(bool)
    stays, goes = (
        int(np.argmin(np.where(keep[0], score[0], np.inf))),
        int(np.argmax(np.where(keep[0], -1.0, score[0]))),
    )
    flipped = keep.copy()
    flipped[0, [stays, goes]] = flipped[0, [goes, stays]]
    actual[step] = np.packbits(flipped, axis=1)
    assert check(case, actual).first is not None  # the scores are far apart
    score[0, goes] = score[0, stays] * (1 - 1e-7)
    close = Own({**own.found, step.replace("keep", "score"): score}, own.errors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refimpl.oracle.check.own_of", lambda *_: close)
        report = check(case, actual)
        beyond = check(case, actual, ("wanda.blocks.2.*",))
    assert {one.status for one in beyond.steps} == {"conditional"}  # the tie was not asked for
    assert report.first is None
    tied = next(one for one in report.steps if one.near_ties)
    assert tied.step == step
    assert set(tied.near_ties) == {(0, stays), (0, goes)}
    later = [one for one in report.steps if one.status == "conditional"]
    assert later
    assert {one.step.split(".")[0] for one in later} == {"wanda"}
    assert report.verdict == "inconclusive"
    assert f"{len(later)} steps not judged ({later[0].step}, " in report_table(report, "a file")


def test_only_as_many_as_are_within_rounding_are_ties() -> None:
    truth = np.array([[True, True, False, False]])
    score = np.array([[2.0, 1.0, 1.0 - 1e-7, 0.5]])
    assert near_ties(np.array([[True, False, True, False]]), truth, score, 1e-6).sum() == 2
    assert near_ties(np.array([[False, True, True, False]]), truth, score, 1e-6).sum() == 1
    assert near_ties(np.array([[True, False, False, True]]), truth, score, 1e-6).sum() == 1


def candidate(tmp_path: Path, **changes: Array) -> Path:
    path = tmp_path / "actual.safetensors"
    arrays = computed("llama", "float32") | changes
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
    return path


def test_the_command_says_how_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary, xml, case = tmp_path / "summary.md", tmp_path / "report.xml", CASES / "llama"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    done = run("check", case, candidate(tmp_path), "--junit-xml", xml)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith("passes: ")
    assert done.out in summary.read_text()
    suite = ElementTree.parse(xml).getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(case_of("llama").expected)), "0")

    wrong = computed("llama", "float32")["blocks.1.k_rope"] * 1.001
    path = candidate(tmp_path, **{"blocks.1.k_rope": wrong})
    done = run("check", case, path, "--junit-xml", xml, "--json")
    assert done.code == 1
    found = json.loads(done.out)
    assert (found["verdict"], found["first"]["step"]) == ("divergent", "blocks.1.k_rope")
    assert ElementTree.parse(xml).getroot().get("failures") == "1"
    done = run("check", case, path)
    assert "divergent, first at blocks.1.k_rope" in done.out
    assert done.out.splitlines()[-1].startswith("again: refimpl check ")
    assert run("check", case, path, "--only", "blocks.0.*").code == 0

    save_file({"logits": computed("llama", "float32")["logits"]}, path)
    done = run("check", case, path)
    assert done.code == 3
    assert "inconclusive" in done.out


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = candidate(tmp_path)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(path.read_bytes()[:5000])
    save_file({"owl.counts": np.zeros(3, np.int64)}, tmp_path / "counts.safetensors")
    for case, actual, words in (
        (CASES / "llama", torn, ()),
        (CASES / "llama", tmp_path / "none", ()),
        (CASES / "llama", tmp_path / "counts.safetensors", ()),
        (CASES / "llama", path, ("--only", "nothing.*")),
        (CASES / "llama", path, ("-o", path)),
        (FIXTURES / "llama", path, ()),
        (tmp_path, path, ()),
    ):
        done = run("check", case, actual, *words)
        assert done.code == 2, done.out
        assert "expected: " in done.err


@pytest.mark.parametrize("what", ["spec", "model", "inputs", "recipe", "steps"])
def test_a_case_that_was_changed_is_refused(what: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "llama", tmp_path / "llama")
    folder = tmp_path / "cases" / "llama"
    shutil.copytree(CASES / "llama", folder)
    assert read_case(folder).name == "llama"
    facts = json.loads((folder / "case.json").read_text())
    if what == "spec":
        facts["spec"] += 1
    elif what == "recipe":
        facts["recipe"]["gain"] = 1
    elif what == "steps":
        facts["steps"][0]["name"] = "begin"
    elif what == "inputs":
        case = case_of("llama")
        save_file({**case.inputs, "noise": case.inputs["noise"] * 2}, folder / "inputs.safetensors")
    else:
        with (tmp_path / "llama" / "model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\0")
    (folder / "case.json").write_text(json.dumps(facts))
    with pytest.raises(RefimplError):
        read_case(folder)


def test_a_case_of_any_model(tmp_path: Path) -> None:
    model, case = FIXTURES / "qwen2", tmp_path / "case"
    words = ("--samples", 2, "--seq-len", 8, "--eta", 0.1, "--nm", "", "--shown", 1)
    done = run("case", "make", model, "-o", case, *words)
    assert done.code == 0, done.err
    made = read_case(case)
    assert made.recipe.eta == 0.1
    assert made.inputs["token_ids"].shape == (2, 8)
    assert not [step for step in made.expected if step.startswith("pattern")]
    save_file(dict(made.expected), tmp_path / "actual.safetensors")
    assert run("check", case, tmp_path / "actual.safetensors").code == 0
    assert run("case", "make", model, "-o", case).code == 2  # exists
    assert run("case", "make", model, "-o", tmp_path / "new", "--shown", 9).code == 2
    assert not (tmp_path / "new").exists()


def test_every_step_belongs_to_a_stage() -> None:
    stages = {stage_of(step) for step in case_of("llama").expected}
    assert stages == {
        "forward", "experiment", "signals", "allocation", "wanda", "sparsegpt", "pattern",
        "perplexity",
    }  # fmt: skip


def test_every_step_has_causes() -> None:
    for name in NAMES:
        for step in case_of(name).expected:
            assert usual_causes(step, "float32", 1.0, ""), step


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_16_bits_in_another_detail_do_not_diverge(name: str, dtype: str) -> None:
    """Weights in 16 bits and states in float32: another right candidate than refimpl's own."""
    case = case_of(name)
    half = KINDS[dtype]

    class Stored(RoundedModel):
        def _rounded(self, *words: object) -> Arrays:
            return {k: np.asarray(x) for k, x in super()._rounded(*words).items()}  # type: ignore[arg-type]

    known = {field.name: getattr(case.model, field.name) for field in fields(Model)}
    model = Stored(**known, kind=half)
    found = steps(model, case.inputs["token_ids"], case.recipe, np.float32)
    report = check(case, {k: narrow(v, dtype) for k, v in found.items()})
    assert (report.dtype, report.first) == (dtype, None)
    early = [one.status for one in report.steps if stage_of(one.step) in EARLY]
    assert set(early) == {"pass"}


EARLY = ("forward", "experiment", "signals")


def narrow(x: Array, dtype: str) -> Array:
    """In 16 bits where it is of float32; statistics stay as they are."""
    return (
        x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        if (x.dtype == np.float32)
        else x
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_16_bits_are_read_and_mistakes_seen(name: str, dtype: str, tmp_path: Path) -> None:
    case = case_of(name)
    made = rounded_steps(case.model, case.inputs["token_ids"], case.recipe, KINDS[dtype])
    right = {k: narrow(v, dtype) for k, v in made.items()}
    path = tmp_path / "actual.safetensors"
    save_file({k: np.ascontiguousarray(v) for k, v in right.items()}, path)
    assert run("check", CASES / name, path, "--only", "blocks.*", "--only", "logits").code == 0
    for step in ("embed", "blocks.1.attn_norm", "blocks.1.q_rope", "blocks.2.mlp_out", "logits"):
        for wrong in (-right[step], np.roll(right[step], 1, axis=-2)):
            first = check(case, right | {step: wrong}).first
            assert first is not None
            assert first.step == step


def test_rounding_is_that_of_native_float16() -> None:
    """NumPy's own float16 computes in float32 and rounds once, too."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 8, 8)).astype(np.float16)
    a, b = (Float16.of(z.astype(np.float32)) for z in (x, y))
    for function in (
        np.add, np.multiply, np.divide, np.matmul, lambda u, v: np.exp(u) - v,
        lambda u, v: np.mean(u * v, axis=-1), lambda u, v: np.where(u > v, u, v) @ v.T,
    ):  # fmt: skip
        native, rounded = function(x, y), function(a, b)
        assert native.dtype == np.float16
        assert isinstance(rounded, Float16)
        np.testing.assert_allclose(rounded, native.astype(np.float32), rtol=2**-10, atol=2**-14)
        assert np.array_equal(rounded, np.asarray(rounded).astype(np.float16))
    a += b
    assert np.array_equal(a, (x + y).astype(np.float32))
    assert type(a.astype(np.float64)) is np.ndarray


def test_a_case_beyond_the_range_of_float16_is_refused() -> None:
    case = case_of("llama")
    far = replace(case.recipe, eta=1e6)
    changed = replace(case, recipe=far, expected=steps(
        case.model, case.inputs["token_ids"], far
    ))  # fmt: skip
    with pytest.raises(RefimplError, match="float16"):
        check(changed, {"logits": case.expected["logits"].astype(np.float16)})


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
        found = linear_counts(other, sizes)
        if (found != truth).any():
            accepted += 1
            size = float(np.max(np.abs(other / sparsity - 1))) * 1.001
            places = count_ties(found, truth, sparsity, sizes, 0.5, size)
            assert len(places) == (found != truth).sum()
        wrong = found.copy()
        wrong[:2] = np.stack([split_count(int(x.sum()) + s, sizes) for x, s in zip(
            found[:2], (2, -2), strict=True
        )])  # fmt: skip
        assert not count_ties(wrong, truth, sparsity, sizes, 0.5, 1e-3)
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
    x = np.append(np.ones(99), 0.0)
    x = np.append(x, 3 * np.append(x, 0).sum() / 98)  # the last is 3 times the mean, to rounding
    m = float(x[-1] / x.mean()) * (1 - 1e-8)
    truth = np.array([100 / 101])
    assert outlier_ties(np.zeros(1), truth, iter([x]), m, 1e-5, 1e-6, 1e-3) == ((0,),)
    assert outlier_ties(np.zeros(1), truth, iter([x]), m, 1e-5, 1e-9, 1e-3) == ()
    assert outlier_ties(np.zeros(1), truth, iter([x]), m, 1.0, 1e-6, 1e-3) == ((0,),)  # on the edge


def test_sparsegpt_knows_its_margins() -> None:
    """The two weights nearest to the threshold may change places if it is near enough."""
    case, own = case_of("llama"), own_of(case_of("llama"), "float32")
    step = "sparsegpt.blocks.1.q_proj.keep"
    score, group, _ = score_behind(case, own, step, "float32")
    keep = np.unpackbits(case.expected[step], axis=1, count=score.shape[1]).astype(bool)
    assert score[keep].min() > score[~keep].max()
    stays = np.unravel_index(np.argmin(np.where(keep, score, np.inf)), keep.shape)
    goes = np.unravel_index(np.argmax(np.where(keep, -1.0, score)), keep.shape)
    flipped = keep.copy()
    flipped[stays], flipped[goes] = False, True
    bits = np.packbits(flipped, axis=1)
    gap = 1 - score[goes] / score[stays]
    for allowed, ties in ((gap * 1.01, 2), (gap * 0.99, 0)):
        assert len(keep_ties(bits, case.expected[step], score, group, allowed)) == ties


def test_an_input_that_carries_little_is_off_by_more() -> None:
    """Of two inputs as near to each other, only the one that rounding reaches may change places."""
    score = np.array([[1.0, 1.1, 8.0, 8.8]])
    truth = np.array([[False, True, False, True]])
    other, bits = ~truth, np.packbits(truth, axis=1)
    relative = np.array([0.2, 0.2, 1e-6, 1e-6])
    groups = (x.reshape(2, 2) for x in (other, truth, score, relative))
    assert near_ties(*groups).tolist() == [[True, True], [False, False]]
    found = np.where([[True, True, False, False]], other, truth)
    assert len(keep_ties(np.packbits(found, axis=1), bits, score, 2, relative)) == 2
    assert keep_ties(np.packbits(other, axis=1), bits, score, 2, relative) == ()
    assert turnable(bits, score, 2, relative) == 2
    assert turnable(bits, score, 2, np.full(4, 0.2)) == 4


def test_the_slack_of_an_input_grows_as_it_carries_less() -> None:
    case, step = case_of("gpt2"), "wanda.blocks.1.down_proj.keep"
    _, _, slack = score_behind(case, own_of(case, "float32"), step, "float32")
    carried = np.sqrt(case.expected["wanda.blocks.1.mlp_hidden.squares"])
    typical = np.sqrt(np.mean(np.square(carried)))
    assert carried.min() < typical / 2
    assert slack.shape == carried.shape
    assert slack * np.minimum(carried, typical) == pytest.approx(slack.min() * typical)


def test_what_follows_from_numbers_within_their_tolerance_is_within_its_own() -> None:
    """A base is asked to be no nearer than the signals that it is made of, and so on."""
    case = case_of("llama")
    limits, rng = limits_of(case, "float32"), np.random.default_rng(0)
    fed = Fed(case, case.model, np.float64, None)
    for base in ("owl", "dlp", "alphapruning"):
        right = case.expected[f"{base}.signal"]
        for _ in range(20):
            signs = rng.choice([-1, 1], right.shape[:1] + (1,) * (right.ndim - 1))
            signal = right * (1 + 0.99 * limits[f"{base}.signal"] * signs)
            request = case.recipe.request(base)
            linears = tuple(case.model.config.linear_shapes)
            signals = fed.signals({f"{base}.signal": signal})
            found = base_allocation(signals, request, len(right), linears, fed.sizes)
            found = project(found, np.full(len(right), fed.sizes.sum()), case.recipe.sparsity)
            actual = {f"{base}.base": found.astype(np.float32)}
            report = check(case, actual, (f"{base}.base",), dtype="float32")
            assert report.verdict == "pass", (base, report.first)


def test_a_function_moves_with_its_arguments() -> None:
    x = np.array([3.0, 1.0])
    assert moved_by(lambda v: v, x, 1e-3) == pytest.approx(1e-3)
    assert moved_by(lambda v: v[:1] - v[1:], x, 1e-6) == pytest.approx(2e-6, rel=1e-3)
    assert moved_by(lambda v: np.zeros(1) * v, x, 0.1) == 0
    assert moved_by(lambda v: v - 3, x, 1e-6) == np.inf  # a number that should be 0
    assert moved_by(lambda v: v, x, np.inf) == pytest.approx(1)


def test_a_drift_is_resolved_as_far_as_the_states_are(tmp_path: Path) -> None:
    """The smaller the push, the less of its drift a dtype can tell."""
    tokens = Tokens(drawn_ids(), "drawn uniformly with seed 0", "ids")
    for eta in (0.01, 1e-4):
        made = make_case(model_of("llama"), tokens, Recipe(eta=eta), tmp_path / str(eta))
        errors = own_of(made, "float32").errors
        rho = max(x for name, x in errors.items() if name.endswith(".resid_post"))
        size = made.expected["blocks.0.resid_post"].size
        least = (2 / size) ** 0.5 * rho / eta
        for step in ("perturbed.0.drift", "perturbed.3.drift", "absorption_coefficient"):
            assert errors[step] > 0.9 * least


def test_what_the_dtype_does_not_resolve_is_not_judged() -> None:
    """A ratio of drifts of which rounding left nothing: refimpl is off by five times its size."""
    truth = np.array([1.0, 2.0])

    def status(found: list[float], own: float, step: str = "absorption_coefficient") -> str:
        return judged(step, {step: np.array(found)}, truth, own, 8 * own).status

    assert status([50.0, 2.0], 5.0) == "conditional"
    assert status([30.0, 2.0], 5.0) == "pass"
    assert status([50.0, 2.0], 0.9) == "divergent"
    assert status([np.nan, 2.0], 5.0) == "conditional"  # no token had a drift: 0 / 0
    assert status([np.nan, 2.0], 0.9) == "divergent"
    assert status([np.nan, 2.0], 5.0, "perturbed.0.drift") == "divergent"
    assert status([np.inf, 2.0], 5.0) == "divergent"
    assert status([1.0, 2.0, 3.0], 5.0) == "divergent"
    whole = np.array([1, 2])
    assert judged("owl.counts", {"owl.counts": whole + 1}, whole, 3.0, 0.0).status == "divergent"


def crafted(family: str, tensors: Arrays, folder: Path) -> Case:
    """A case of a fixture with other weights."""
    (folder / "model").mkdir()
    shutil.copy(FIXTURES / family / "config.json", folder / "model")
    save_file(tensors, folder / "model" / "model.safetensors")
    tokens = Tokens(drawn_ids(), "drawn uniformly with seed 0", "ids")
    return make_case(read_model(folder / "model"), tokens, Recipe(), folder / "case")


def drawn_ids() -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(8, 64, (2, 16))


def test_an_input_that_rounding_leaves_nothing_of_may_be_dead(tmp_path: Path) -> None:
    """gelu(-5.5) is -6e-9 in float64 and 0 in float32; SparseGPT then gives the input up."""
    tensors = {k: v.copy() for k, v in load_file(FIXTURES / "gpt2" / "model.safetensors").items()}
    for i in range(2):
        tensors[f"transformer.h.{i}.mlp.c_fc.weight"][:, 3] = 0
        tensors[f"transformer.h.{i}.mlp.c_fc.bias"][3] = -5.5
    case = crafted("gpt2", tensors, tmp_path)
    step = "sparsegpt.blocks.0.down_proj.keep"
    right = np.unpackbits(case.expected[step], axis=1)
    assert right[:, 3].any()
    found = own_of(case, "float32").found
    keep = np.unpackbits(found[step], axis=1)
    assert not keep[:, 3].any()
    (one,) = check(case, {step: found[step]}, (step,), "float32").steps
    assert one.status == "pass"
    assert len(one.near_ties) == (keep != right).sum() > 2
    score = score_behind(case, own_of(case, "float32"), step, "float32")[0]
    keep[np.unravel_index(np.argmax(score), score.shape)] ^= 1  # and what no rounding turns
    wrong = {step: np.packbits(keep, axis=1)}
    assert check(case, wrong, (step,), "float32").verdict == "divergent"


def test_in_16_bits_a_dead_input_may_carry_next_to_nothing(tmp_path: Path) -> None:
    """A ReLU lets nothing through in float64, and 1e-5 in bfloat16; float32 has no such excuse."""
    tensors = {k: v.copy() for k, v in load_file(FIXTURES / "opt" / "model.safetensors").items()}
    (name,) = (k for k in tensors if k.endswith("layers.0.fc1.weight"))
    tensors[name][3] = 0
    tensors[name.replace("weight", "bias")][3] = -1e-3
    tensors[name.replace("fc1", "fc2")][:, 3] *= 20
    case = crafted("opt", tensors, tmp_path)
    step, total = "sparsegpt.blocks.0.down_proj.keep", "sparsegpt.blocks.0.mlp_hidden.products"
    products = case.expected[total].copy()
    assert products[3, 3] == 0
    products[3, 3] = 1e-10
    dense = case.model.block(0, np.float64)["down_proj.weight"]
    index = list(case.model.config.linear_shapes).index("down_proj")
    goal = int(case.expected["owl.counts"][0, index])
    keep, _ = decision(dense, products, 2, goal, Pruner("sparsegpt", case.recipe.damping))
    assert keep[:, 3].sum() > 2
    found = {step: np.packbits(keep, axis=1)}
    assert check(case, found, (step,), "bfloat16").first is None
    assert check(case, found, (step,), "float32").first is not None
    keep[:, 3] = ~keep[:, 3]
    assert check(case, {step: np.packbits(keep, axis=1)}, (step,), "bfloat16").first is not None
