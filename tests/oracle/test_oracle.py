"""The oracle: cases of every family, candidates that are right, and candidates that are not."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from runpy import run_path
from typing import Any

import jsonschema
import numpy as np
import pytest
from candidates import (
    CASE_NAMES,
    CASES,
    StoredModel,
    by_turns,
    computed,
    open_steps,
    read_cases_once,
    with_one_number_off,
    write_arrays,
    written,
)
from conftest import FIXTURES
from crafted_cases import changed_case, copied_tensors
from gates import case_of
from program import ran, refused, run
from safetensors.numpy import load_file

from refimpl import RefimplError
from refimpl.model.ops import Array
from refimpl.oracle.case import case_inputs, read_case
from refimpl.oracle.case_folders import CORE
from refimpl.oracle.check import check
from refimpl.oracle.measures import error_of, measure_of, stage_of, step_result
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import ARITHMETIC, RoundedModel, rounding
from refimpl.oracle.steps import every_array, steps
from refimpl.oracle.truth import own_errors
from refimpl.show.oracle import report_table

SCHEMA = FIXTURES.parent / "docs" / "reference" / "case.schema.json"
EARLY = ("forward", "experiment", "signals")


@pytest.mark.parametrize("name", CORE)
def test_the_script_makes_the_committed_case(name: str, tmp_path: Path) -> None:
    """Numbers that change need a new `refimpl.version.SPEC`, and cases made again."""
    run_path(str(FIXTURES / "make_cases.py"))["make"](name, tmp_path / name)
    (committed,) = FIXTURES.glob(f"*/{name}/case.json")
    folders = committed.parent, tmp_path / name
    old, new = (json.loads((folder / "case.json").read_text()) for folder in folders)
    jsonschema.validate(old, json.loads(SCHEMA.read_text("utf-8")))
    assert {key for key in old if old[key] != new[key]} <= {"model", "versions"}
    truth, made = (load_file(folder / "expected.safetensors") for folder in folders)
    assert made.keys() == truth.keys()
    for key, value in truth.items():
        assert (made[key].dtype, made[key].shape) == (value.dtype, value.shape)
        np.testing.assert_allclose(made[key], value, 1e-9, 1e-12, err_msg=key)


@pytest.mark.parametrize("way", ["chained.float32", "stepwise.bfloat16"])
def test_the_stored_errors_are_those_that_are_measured(way: str) -> None:
    """The largest of three kernels, and this one may be a fourth."""
    stored, (kind, dtype) = case_of("opt").errors[way], way.split(".")
    measured = own_errors(replace(case_of("opt"), errors={}), dtype, kind)
    assert measured.keys() <= stored.keys()  # in 16 bits those of the forward
    assert [
        x for x, error in measured.items() if not error <= 4 * stored[x] + 1e-12
    ] == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("wanda.blocks.1.v_proj.keep", r"steps \['wanda\.blocks\.1\.v_proj\.keep'\]"),
        ({"bases": ["owl"]}, r"its recipe does not compute the step \w+\."),
    ],
)
def test_steps_that_do_not_belong_to_the_recipe_are_refused(
    change: str | dict[str, Any], problem: str, tmp_path: Path
) -> None:
    """One is left out of case.json, or the recipe there is another one: no traceback."""
    shutil.copytree(FIXTURES / "llama", tmp_path / "llama")
    folder = tmp_path / "cases" / "llama"
    shutil.copytree(CASES / "llama", folder, ignore=shutil.ignore_patterns("errors.*"))
    facts = json.loads((folder / "case.json").read_text())
    if isinstance(change, str):
        facts["steps"] = [step for step in facts["steps"] if step["name"] != change]
    else:
        facts["recipe"] |= change
    (folder / "case.json").write_text(json.dumps(facts))
    path = write_arrays(tmp_path / "actual.safetensors", computed("llama"))
    assert re.search(problem, refused("check", folder, path))


@pytest.mark.parametrize(("name", "dtype"), by_turns(CASE_NAMES, "float64", "float32"))
def test_a_right_candidate_passes(name: str, dtype: str) -> None:
    report = check(case_of(name), computed(name, dtype))
    assert (report.verdict, report.first) == ("pass", None)
    assert report.dtype == dtype


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("opt", 0),
        *(pytest.param("phi3", x, marks=pytest.mark.thorough) for x in (1, 2)),
    ],
)
def test_a_mistake_is_found_at_its_step(name: str, first: int) -> None:
    """One step of each kind: of a point, a pruner and a linear, the same in all blocks."""
    actual = computed(name)
    kinds = {re.sub(r"\d+", "", step): step for step in actual}
    for step in [*kinds.values()][first::3]:
        wrong = {step: with_one_number_off(actual, step)[step]}
        report = check(case_of(name), wrong, (step,), "float32")
        assert report.first is not None, step


FAULTS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "NaN": (
        lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.nan, x),
        "NaN",
    ),
    "Inf": (
        lambda x: np.where(np.arange(x.size).reshape(x.shape) == 3, np.inf, x),
        "Inf",
    ),
    "zero": (np.zeros_like, "are 0"),
    "shape": (lambda x: x[:1], "shape"),
    "integers": (lambda x: np.rint(x).astype(np.int32), "dtype"),
    "transposed": (lambda x: np.swapaxes(x, 0, 1), "shape"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_has_a_name(name: str) -> None:
    broken, word = FAULTS[name]
    actual, step = computed("llama"), "blocks.2.attn_out"
    first = check(
        case_of("llama"), actual | {step: broken(actual[step])}, ("blocks.*",)
    ).first
    assert first is not None
    assert first.step == step
    assert word in first.fault
    assert first.diagnosis


def test_each_kind_of_step_has_its_measure() -> None:
    assert measure_of("blocks.0.q") == "rows"
    assert measure_of("wanda.blocks.0.q_proj.keep") == "bits"
    pair = np.array([1.0, 2.5]), np.array([1.0, 2.0])
    assert error_of("dlp.signal", *pair) == (0.25, (1,), "")
    # An emptied row counts as a quarter of the root mean square of both, a longer one as itself.
    for row, least in ((1e-3, 0.25 * 2**-0.5), (0.5, 0.5)):
        truth = np.array([[(1 - row**2) ** 0.5, 0.0], [0.0, row]])
        off, *_ = error_of("sparsegpt.blocks.0.q_proj.weight", truth * [1, 1.1], truth)
        assert off == pytest.approx(0.1 * row / least)


def test_a_missing_step_never_passes() -> None:
    actual = dict(computed("llama"))
    del actual["blocks.1.v"]
    report = check(case_of("llama"), actual)
    assert report.verdict == "not judged"
    assert [step.step for step in report.steps if step.status == "missing"] == [
        "blocks.1.v"
    ]
    assert check(case_of("llama"), actual, ("logits",)).verdict == "pass"
    assert "1 step missing: blocks.1.v\n--only" in report_table(report, "a file")
    actual |= {x: actual[x] * 2 for x in ("owl.signal", "pruned.1.drift", "logits")}
    report = check(case_of("llama"), actual)
    assert report.verdict == "fail"
    for part in (
        "blocks.1.",
        "coarse.2.",
        "owl.",
        "pruned.",
        "wanda.",
    ):  # as in the whole
        judged = check(case_of("llama"), actual, (f"{part}*",)).steps
        whole = (x for x in report.steps if x.step.startswith(part))
        assert [(x.step, x.status, x.error) for x in judged] == [
            (x.step, x.status, x.error) for x in whole
        ]


def candidate(tmp_path: Path, **changes: Array) -> Path:
    return write_arrays(tmp_path / "actual.safetensors", computed("llama") | changes)


@pytest.mark.usefixtures("few_attempts")
def test_the_command_reports_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_cases_once(monkeypatch)
    case = CASES / "llama"
    out = ran("check", case, candidate(tmp_path))
    assert out.splitlines()[-1].startswith("passes: ")

    path = candidate(
        tmp_path, **{"blocks.1.k_rope": computed("llama")["blocks.1.k_rope"] * 1.001}
    )
    done = run("check", case, path, "--json")
    assert done.code == 1
    document = json.loads(done.out)
    assert (document["verdict"], document["first"]["step"]) == (
        "fail",
        "blocks.1.k_rope",
    )
    # and what reads these keys, as it is judged on them and was computed from the right ones
    wrong = [x["step"] for x in document["steps"] if x["status"] == "divergent"]
    heads = "pruned.blocks.1.attn_heads.squares"
    assert wrong == ["blocks.1.k_rope", "blocks.1.attn_out", "dlp.signal", heads]
    done = run("check", case, path)
    assert "divergent, first at blocks.1.k_rope" in done.out
    assert done.out.splitlines()[-1].startswith("again: refimpl check ")
    ran("check", case, path, "--only", "blocks.0.*")

    done = run(
        "check", case, write_arrays(path, {"logits": computed("llama")["logits"]})
    )
    assert done.code == 3
    assert "not judged: 1 of " in done.out


def test_unusable_input_is_refused(tmp_path: Path) -> None:
    path, torn = candidate(tmp_path), tmp_path / "torn.safetensors"
    torn.write_bytes(path.read_bytes()[:5000])
    counts = write_arrays(
        tmp_path / "counts.safetensors", {"owl.counts": np.zeros(3, np.int64)}
    )
    for words in (
        (CASES / "llama", torn),
        (CASES / "llama", tmp_path / "none"),
        (CASES / "llama", counts),
        (CASES / "llama", path, "--only", "nothing.*"),
        (CASES / "llama", path, "-o", path),
        (FIXTURES / "llama", path),
        (tmp_path, path),
    ):
        refused("check", *words)


@pytest.mark.parametrize("change", ["spec", "model", "inputs", "recipe", "steps"])
def test_a_changed_case_is_refused(change: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "llama", tmp_path / "llama")
    folder = tmp_path / "cases" / "llama"
    shutil.copytree(CASES / "llama", folder)
    assert read_case(folder).name == "llama"
    facts = json.loads((folder / "case.json").read_text())
    match change:
        case "spec":
            facts["spec"] += 1
        case "recipe":
            facts["recipe"]["gain"] = 1
        case "steps":
            facts["steps"][0]["name"] = "begin"
        case "inputs":
            inputs = dict(case_of("llama").inputs)
            write_arrays(
                folder / "inputs.safetensors", inputs | {"noise": inputs["noise"] * 2}
            )
        case "model":
            with (tmp_path / "llama" / "model.safetensors").open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"\0")
    (folder / "case.json").write_text(json.dumps(facts))
    with pytest.raises(RefimplError):
        read_case(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("token_ids", np.ravel),
        ("token_ids", lambda x: x.view(np.float64)),
        ("token_ids", lambda x: x.T),
        ("token_ids", lambda x: x[:, :-1]),
        ("noise", np.ravel),
        ("noise", lambda x: x.view(np.int64)),
        ("noise", lambda x: x[:-1]),
    ],
)
def test_inputs_of_another_shape_or_dtype_are_refused(
    name: str, change: Callable[[Array], Array], tmp_path: Path
) -> None:
    """Their bytes may be those that the case was made from."""
    shutil.copytree(FIXTURES / "llama", tmp_path / "llama")
    folder = tmp_path / "cases" / "llama"
    shutil.copytree(CASES / "llama", folder)
    inputs = dict(case_of("llama").inputs)
    inputs[name] = np.ascontiguousarray(change(inputs[name]))
    write_arrays(folder / "inputs.safetensors", inputs)
    with pytest.raises(RefimplError, match=r"is not a whole case \(steps \[\], inputs"):
        read_case(folder)


def test_a_case_of_any_model(tmp_path: Path) -> None:
    model, folder = FIXTURES / "qwen2", tmp_path / "case"
    words = ("--samples", 2, "--seq-len", 8, "--eta", 0.1, "--nm", "", "--shown", 1)
    ran("case", "make", model, "-o", folder, *words, quiet=False)
    case = read_case(folder)
    assert case.recipe.eta == 0.1
    assert case.inputs["token_ids"].shape == (2, 8)
    assert not [step for step in case.expected if step.startswith("pattern")]
    ran(
        "check",
        folder,
        write_arrays(tmp_path / "actual.safetensors", dict(case.expected)),
    )
    refused("case", "make", model, "-o", folder)
    refused("case", "make", model, "-o", tmp_path / "new", "--shown", 9)
    assert not (tmp_path / "new").exists()


def test_every_step_has_a_stage() -> None:
    stages = {stage_of(step) for step in case_of("llama").expected}
    pruners = {"magnitude", "wanda", "sparsegpt", "pattern", "sparsegpt_pattern"}
    assert stages == {*EARLY, "allocation", "pruned", *pruners, "perplexity"}


@pytest.mark.parametrize(("name", "dtype"), by_turns(CASE_NAMES, "float16", "bfloat16"))
def test_other_right_arithmetic_in_16_bits_does_not_diverge(
    name: str, dtype: str
) -> None:
    case = case_of(name)
    model = case.model.as_kind(StoredModel, kind=ARITHMETIC[dtype])
    arrays = steps(model, case.inputs["token_ids"], case.recipe, np.float32)
    report = check(case, written(case, arrays, dtype))
    assert (report.dtype, report.first) == (dtype, None)
    assert not [step for step in open_steps(report) if stage_of(step) in EARLY]


@pytest.mark.parametrize(
    ("name", "dtype"), by_turns(["llama", "gemma2"], "bfloat16", "float16")
)
def test_16_bits_are_read_and_mistakes_found(
    name: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_cases_once(monkeypatch)
    case = case_of(name)
    model = case.model.as_kind(RoundedModel, kind=ARITHMETIC[dtype])
    arrays = steps(model, case.inputs["token_ids"], case.recipe, "float32")
    right = written(case, arrays, dtype)
    path = write_arrays(tmp_path / "actual.safetensors", right)
    done = run(
        "check", case.folder, path, "--only", "blocks.*", "--only", "logits", "--json"
    )
    document = json.loads(done.out)
    rest = {x["status"] for x in document["steps"]} - {"pass"}
    assert (done.code, document["verdict"]) == (
        (3, "not judged") if rest else (0, "pass")
    )
    assert rest <= {"unresolved"}
    for step in (
        "embed",
        "blocks.1.attn_norm",
        "blocks.1.q_rope",
        "blocks.2.mlp_out",
        "logits",
    ):
        for wrong in (-right[step], np.roll(right[step], 1, axis=-2)):
            first = check(case, {step: wrong}, (step,)).first
            assert first is not None
            assert first.step == step


def test_rounding_is_that_of_native_float16() -> None:
    """NumPy's own float16 computes in float32 and rounds once, too."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 8, 8)).astype(np.float16)
    kind = rounding(narrow=np.float16)
    a, b = (kind.of(z.astype(np.float32)) for z in (x, y))
    for function in (
        np.add,
        np.multiply,
        np.divide,
        np.matmul,
        lambda u, v: np.exp(u) - v,
        lambda u, v: np.mean(u * v, axis=-1),
        lambda u, v: np.where(u > v, u, v) @ v.T,
    ):
        native, rounded = function(x, y), function(a, b)
        assert native.dtype == np.float16
        assert isinstance(rounded, kind)
        np.testing.assert_allclose(
            rounded, native.astype(np.float32), rtol=2**-10, atol=2**-14
        )
        assert np.array_equal(rounded, np.asarray(rounded).astype(np.float16))
    a += b
    assert np.array_equal(a, (x + y).astype(np.float32))
    assert type(a.astype(np.float64)) is np.ndarray


def test_fused_kernels_round_what_they_read_and_write() -> None:
    """A softmax is rounded at its end, and the factors of a product are."""
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float16)
    a, wide = ARITHMETIC["float16"].of(x.astype(np.float32)), x.astype(np.float32)
    inside, right = np.exp(a) - a.max(), np.exp(wide) - wide.max()
    np.testing.assert_array_equal(np.asarray(inside), right)
    for of_it, exact in (
        (inside / np.sum(inside), right / right.sum()),
        (inside @ a, right.astype(np.float16).astype(np.float32) @ wide),
    ):
        assert isinstance(of_it, ARITHMETIC["float16"])
        np.testing.assert_array_equal(np.asarray(of_it), exact.astype(np.float16))


def test_activations_whose_squares_float16_lacks_are_resolved(tmp_path: Path) -> None:
    """One channel of 300: norms are computed in more bits, as every program does."""
    tensors = copied_tensors("llama")
    tensors["model.embed_tokens.weight"][:, 5] = 300
    recipe = Recipe(only=("embed", "blocks.*", "final_norm", "logits"))
    ids = np.random.default_rng(0).integers(8, 64, (2, 16))
    case = changed_case("llama", tensors, tmp_path, ids, recipe)
    model = case.model.as_kind(StoredModel, kind=ARITHMETIC["float16"])
    actual = written(
        case, steps(model, case.inputs["token_ids"], recipe, "float32"), "float16"
    )
    report = check(case, actual)
    assert report.verdict == "pass", [x for x in report.steps if x.status != "pass"][:2]
    without = actual["blocks.1.attn_norm"] * np.float16(1.05)  # such as another eps
    assert check(case, actual | {"blocks.1.attn_norm": without}).first is not None
    assert max(np.abs(x).max() for x in case.expected.values()) > 256


def test_a_step_that_the_dtype_does_not_resolve_is_not_judged() -> None:
    """A ratio of drifts of which rounding left nothing: refimpl is off by five times its size."""
    truth = np.array([1.0, 2.0])

    def status(
        actual: list[float], own: float, step: str = "absorption_coefficient"
    ) -> str:
        return step_result(step, {step: np.array(actual)}, truth, own, 8 * own).status

    assert status([30.0, 2.0], 5.0) == "unresolved"
    assert status([1.2, 2.0], 0.06) == "pass"
    assert status([50.0, 2.0], 0.9) == "divergent"
    assert status([np.nan, 2.0], 0.9) == "divergent"
    assert status([np.nan, 2.0], 5.0, "perturbed.0.drift") == "divergent"
    assert status([np.inf, 2.0], 5.0) == "divergent"
    assert status([1.0, 2.0, 3.0], 5.0) == "divergent"
    counts = np.array([1, 2])
    result = step_result("owl.counts", {"owl.counts": counts + 1}, counts, 3.0, 0.0)
    assert result.status == "divergent"


def test_a_tolerance_of_half_a_number_passes_nothing() -> None:
    """In bfloat16 the shipped eta is not resolved: a right candidate stays open, with the ratio."""
    drifts = np.array([0.01, 0.02])

    def judged(actual: list[float], own: float) -> tuple[str, str]:
        result = step_result(
            "perturbed.0.drift",
            {"perturbed.0.drift": np.array(actual)},
            drifts,
            own,
            8 * own,
        )
        return result.status, result.fault

    assert judged([0.01, 0.02], 0.06) == ("pass", "")
    status, words = judged([0.012, 0.02], 0.1)
    assert (status, words) == (
        "unresolved",
        "not resolvable in this dtype: 0.25 of a tolerance of 0.8",
    )
    assert judged([-0.01, 0.02], 0.1)[0] == "divergent"
    row, truth = np.array([[0.9, 0.0]]), np.array([[1.0, 0.0]])
    for step, limit in (
        ("blocks.0.q", 0.25),
        ("wanda.blocks.0.attn_norm.squares", 0.5),
    ):
        for share, status in ((0.99, "pass"), (1.0, "unresolved"), (6.0, "unresolved")):
            tolerance = share * limit
            result = step_result(step, {step: row}, truth, tolerance / 8, tolerance)
            assert result.status == status, (step, share)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_an_alignment_of_1_never_passes(name: str) -> None:
    """A perturbation that was left out: at an eta of 0.001, 1 - A is 5e-7."""
    case, right = case_of(name), dict(computed(name))
    left_out = {
        x: np.ones_like(y) for x, y in right.items() if x.endswith(".alignment")
    }
    report = check(case, right | left_out)
    assert not {x.step for x in report.steps if x.status == "pass"} & left_out.keys()
    coarse = check(case, right | left_out, ("coarse.*.alignment",))
    assert {x.status for x in coarse.steps} == {"divergent"}
    assert check(case, right, ("coarse.*.alignment",)).verdict == "pass"


@pytest.mark.parametrize(
    ("step", "value"),
    [
        ("dense.perplexity", 0.5),
        ("coarse.0.alignment", 1.2),
        ("owl.base", 1.2),
        ("owl.signal", -1),
    ],
)
def test_a_number_that_cannot_be_diverges(step: str, value: float) -> None:
    case = case_of("llama")
    wrong = case.expected[step].copy()
    wrong[0] = value
    for dtype in ("float64", "float32"):
        (result,) = check(case, {step: wrong}, (step,), dtype).steps
        assert result.status == "divergent"


def test_tensors_are_taken_by_the_library(tmp_path: Path) -> None:
    """A tensor of torch, as far as the library looks at it."""

    class Tensor:
        def __init__(self, array: Array) -> None:
            self.dtype, self._array = f"torch.{array.dtype}", array

        def detach(self) -> "Tensor":
            return self

        cpu = detach

        def __array__(self, dtype: None = None, copy: None = None) -> Array:
            return self._array

    tensors = {name: Tensor(x) for name, x in computed("llama").items()}
    report = check(case_of("llama"), tensors)
    assert (report.verdict, report.dtype) == ("pass", "float32")


def test_in_16_bits_the_forward_is_judged_and_the_method_is_not(tmp_path: Path) -> None:
    case = case_of("opt")
    right = written(
        case, every_array(case_inputs(case, rounded=ARITHMETIC["float16"])), "float16"
    )
    actual = write_arrays(tmp_path / "right.safetensors", right)
    done = run("check", case.folder, actual)
    assert done.code == 3
    assert "nothing was judged of experiment, signals" in done.out
    assert run("check", case.folder, actual, "--only", "forward").code == 0
    for step, status in (("logits", "divergent"), ("dense.perplexity", "unresolved")):
        (result,) = check(case, right | {step: -right[step]}, (step,)).steps
        assert result.status == status
