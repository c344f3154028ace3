"""Candidates that are fed the case's own values: each step is judged by itself."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import ml_dtypes
import numpy as np
import pytest
from conftest import FIXTURES
from program import run
from safetensors.numpy import save_file

from refimpl import RefimplError
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, read_case
from refimpl.oracle.check import check
from refimpl.oracle.fed import Fed
from refimpl.oracle.judging.own_errors import own_of
from refimpl.oracle.rounding import KINDS, RoundedModel
from refimpl.oracle.steps import steps
from refimpl.oracle.stepwise import _steps, rounded_stepwise_steps, stepwise_steps
from refimpl.show.oracle import stage_of
from refimpl.testing.selection import Wanted
from refimpl.testing.trial import Trial

CASES = FIXTURES / "cases"
NAMES = sorted(folder.name for folder in CASES.iterdir())
PROJECT = Path(__file__).parents[1] / "sample_project"
TYPES = {"bfloat16": ml_dtypes.bfloat16}
CHOICES = (".keep", ".counts", "owl.signal")

needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")

Arrays = dict[str, Array]


@cache
def case_of(name: str) -> Case:
    return read_case(CASES / name)


@cache
def computed(name: str) -> Arrays:
    """What refimpl computes in float32, fed the case's values: the work of a right candidate."""
    return written(case_of(name), stepwise_steps(case_of(name), np.float32), "float32")


def written(case: Case, found: Arrays, dtype: str) -> Arrays:
    """The case's steps alone, in a dtype; in 16 bits what is float64 in the method stays that."""
    narrow = ("f4",) if dtype.endswith("float16") else ("f4", "f8")
    some = {name: np.asarray(found[name]) for name in case.expected}
    kind = np.dtype(TYPES.get(dtype, dtype))
    return {k: v.astype(kind) if v.dtype.str[1:] in narrow else v for k, v in some.items()}


def divergent(case: Case, actual: Arrays, stepwise: bool = True) -> list[str]:
    report = check(case, actual, stepwise=stepwise)
    return [step.step for step in report.steps if step.status == "divergent"]


@pytest.mark.parametrize("name", NAMES)
def test_in_float64_every_step_comes_to_the_truth(name: str) -> None:
    """Nothing else than the case's values is needed for any step, and no choice goes astray."""
    case = case_of(name)
    found = stepwise_steps(case)
    for step, truth in case.expected.items():
        if truth.dtype.kind == "f":
            np.testing.assert_allclose(found[step], truth, rtol=1e-9, atol=1e-12, err_msg=step)
        else:
            assert np.array_equal(found[step], truth), step
    assert check(case, written(case, found, "float64"), stepwise=True).verdict == "pass"


@pytest.mark.parametrize("name", NAMES)
def test_a_right_candidate_in_float32_passes(name: str) -> None:
    report = check(case_of(name), computed(name), stepwise=True)
    assert (report.verdict, report.dtype, report.stepwise) == ("pass", "float32", True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_16_bits_in_another_detail_pass(name: str, dtype: str) -> None:
    """Weights in 16 bits, states in float32: no choice that goes the other way leaves a gap."""
    case = case_of(name)

    class Stored(RoundedModel):
        def _rounded(self, *words: object) -> Arrays:
            return {k: np.asarray(x) for k, x in super()._rounded(*words).items()}  # type: ignore[arg-type]

    known = {field.name: getattr(case.model, field.name) for field in fields(Model)}
    fed = Fed(case, Stored(**known, kind=KINDS[dtype]), np.float32, None)
    actual = written(case, dict(_steps(fed)), dtype)
    report = check(case, actual, stepwise=True)
    assert report.verdict == "pass", report.first
    assert {step.status for step in report.steps} == {"pass"}
    assert all(step.step.endswith(CHOICES) for step in report.steps if step.near_ties)


def rolled(x: Array) -> Array:
    """Other numbers, of the same size and the same sum."""
    return np.roll(x, 1, axis=-1 if x.ndim != 2 or len(x) == 1 else 0)


def heavier(x: Array) -> Array:
    """Another Hessian."""
    return x + np.diag(np.linspace(0, np.trace(x), len(x)))


def wrong_in_block(case: Case, index: int, change: Callable[[Arrays], Arrays]) -> Case:
    """The case with a model that is wrong in one block: what a mistake there would make of it."""

    class Wrong(Model):
        def block(self, i: int, dtype: object, each: Callable[..., object] = map) -> Arrays:
            found = super().block(i, dtype, each)  # type: ignore[arg-type]
            return change(found) if i == index else found

    known = {field.name: getattr(case.model, field.name) for field in fields(Model)}
    return replace(case, model=Wrong(**known))


def test_a_mistake_stays_in_its_block() -> None:
    """Step by step, blocks 0 and 2 are right; chained, everything from block 1 on is wrong."""
    case = case_of("llama")
    wrong = wrong_in_block(
        case, 1, lambda w: w | {"v_proj.weight": np.roll(w["v_proj.weight"], 1, axis=0)}
    )
    actual = written(case, stepwise_steps(wrong, np.float32), "float32")
    forward = [step for step in divergent(case, actual) if step.startswith("blocks.")]
    assert forward == [f"blocks.1.{x}" for x in (
        "v", "attn_out", "resid_mid", "mlp_norm", "mlp_out", "resid_post",
    )]  # fmt: skip
    ran = steps(wrong.model, case.inputs["token_ids"], case.recipe, np.float32)
    chained = divergent(case, written(case, ran, "float32"), stepwise=False)
    assert chained[0] == "blocks.1.v"
    assert {"blocks.2.q", "blocks.3.resid_post", "logits"} <= set(chained)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_number_that_is_off_is_the_only_step_named(dtype: str) -> None:
    case = case_of("llama")
    actual = written(case, stepwise_steps(case, dtype), dtype)
    for step, value in actual.items():
        broken = value.copy()
        flat = broken.reshape(-1)
        at = int(np.argmax(np.abs(flat.astype(np.float64))))
        if value.dtype.kind == "f":
            flat[at] *= 1.01
        else:
            flat[at] ^= 1
        report = check(case, actual | {step: broken}, (step,), stepwise=True)
        assert report.first is not None, step
    step = "blocks.1.attn_out"
    assert divergent(case, actual | {step: actual[step] * np.float32(1.01)}) == [step]


def test_nothing_is_conditional_after_a_near_tie() -> None:
    """The same decision within rounding: chained, the rest is open; step by step, it is judged."""
    case = case_of("llama")
    made = written(case, rounded_stepwise_steps(case, KINDS["bfloat16"]), "bfloat16")
    truth = {k: v.astype(TYPES["bfloat16"]) if v.dtype.kind == "f" else v
             for k, v in case.expected.items()}  # fmt: skip
    step = next(x for x in made if "wanda" in x and x.endswith("keep")
                and not np.array_equal(made[x], truth[x]))  # fmt: skip
    actual = truth | {step: made[step]}
    assert {x.status for x in check(case, actual).steps} == {"pass", "conditional"}
    report = check(case, actual, stepwise=True)
    assert (report.verdict, {x.status for x in report.steps}) == ("pass", {"pass"})
    assert [x.step for x in report.steps if x.near_ties] == [step]
    far = np.packbits(~np.unpackbits(truth[step], axis=1).astype(bool), axis=1)
    assert divergent(case, actual | {step: far}) == [step]


def test_weights_follow_the_decisions_of_the_case() -> None:
    """Of a near tie too: the weights that are judged are those of the case's own decision."""
    case = case_of("qwen2")
    step = "wanda.blocks.2.up_proj"
    weight = case.expected[f"{step}.weight"]
    other = np.roll(np.unpackbits(case.expected[f"{step}.keep"], axis=1), 1, axis=1)
    changed = {**case.expected, f"{step}.keep": np.packbits(other, axis=1)}
    found = stepwise_steps(replace(case, expected=changed))
    assert np.array_equal(found[f"{step}.keep"], case.expected[f"{step}.keep"])
    dense = case.model.block(2, np.float64)["up_proj.weight"]
    kept = other[:, : weight.shape[1]].astype(bool)
    assert np.array_equal(found[f"{step}.weight"], np.where(kept, dense, 0))


# A value of the case that is changed, and how; and the steps that change with it, as patterns, all
# of which must match something. This is the table of docs/how-to/check.md.
FED: dict[str, tuple[Callable[[Array], Array], tuple[str, ...]]] = {
    "blocks.1.resid_pre": (rolled, ("blocks.1.*", "owl.signal", "dlp.signal")),
    "blocks.1.resid_post": (rolled, ("perturbed.[01].*", "absorption_coefficient")),
    "blocks.3.resid_post": (
        rolled, ("perturbed.*", "absorption_coefficient", "final_norm", "dense.perplexity"),
    ),
    "final_norm": (rolled, ("logits",)),
    "blocks.1.q": (rolled, ()),
    "perturbed.1.drift": (rolled, ()),
    "logits": (rolled, ()),
    "alphapruning.signal": (rolled, ("alphapruning.base", "alphapruning.corrected")),
    "dlp.signal": (rolled, ("dlp.base", "dlp.corrected")),
    "absorption_coefficient": (rolled, ("*.corrected",)),
    "dlp.corrected": (rolled, ("dlp.counts",)),
    "owl.counts": (rolled, ("wanda.*.keep", "sparsegpt.*.keep")),
    "wanda.blocks.1.mlp_norm.squares": (rolled, ("wanda.blocks.1.[gu]*_proj.keep",)),
    "wanda.blocks.3.mlp_hidden.squares": (rolled, ("wanda.blocks.3.down_proj.[ks]*",)),
    "wanda.blocks.1.q_proj.keep": (rolled, ("wanda.blocks.[23].*.squares", "wanda.perplexity")),
    "wanda.blocks.0.q_proj.keep": (
        rolled, ("wanda.blocks.0.q_proj.weight", "wanda.*.squares", "wanda.perplexity"),
    ),
    "pattern.blocks.3.q_proj.keep": (rolled, ("pattern.perplexity",)),
    "sparsegpt.blocks.0.attn_heads.products": (
        heavier, ("sparsegpt.blocks.0.o_proj.keep", "sparsegpt.blocks.0.o_proj.weight"),
    ),
    "sparsegpt.blocks.0.o_proj.keep": (rolled, ("sparsegpt.blocks.0.o_proj.weight",)),
    "sparsegpt.blocks.0.o_proj.weight": (
        rolled,
        ("sparsegpt.blocks.[12].*.keep", "sparsegpt.blocks.3.*.products", "sparsegpt.perplexity"),
    ),
    "sparsegpt.blocks.2.o_proj.keep": (
        rolled, ("sparsegpt.blocks.3.*.products", "sparsegpt.perplexity"),
    ),
    "sparsegpt.perplexity": (rolled, ()),
}  # fmt: skip


@pytest.mark.parametrize("step", FED)
def test_a_step_is_computed_from_what_the_page_says(step: str) -> None:
    """Change a value of the case: the steps that are computed from it change, and no others."""
    case, (change, patterns) = case_of("llama"), FED[step]
    other = replace(case, expected={**case.expected, step: change(case.expected[step])})
    before, after = stepwise_steps(case), stepwise_steps(other)
    changed = {x for x in case.expected if not np.array_equal(before[x], after[x])}
    matched = {pattern: {x for x in changed if fnmatchcase(x, pattern)} for pattern in patterns}
    assert all(matched.values()), matched
    assert changed == set().union(*matched.values())


def test_all_pushes_are_one_sample() -> None:
    """In qwen2 the first push ends, in float16, a thousandth off by chance; the next one, 1 %."""
    errors = own_of(case_of("qwen2"), "float16", True).errors
    for kind in ("drift", "alignment"):
        assert len({x for name, x in errors.items() if name.endswith(kind)}) == 1


def test_16_bits_are_judged_more_closely_than_chained() -> None:
    """Errors and choices do not pile up: refimpl itself is less far off."""
    for name in ("llama", "qwen3"):
        own, chained = (own_of(case_of(name), "bfloat16", way).errors for way in (True, False))
        last = f"wanda.blocks.{case_of(name).model.config.num_blocks - 1}.up_proj.score"
        for step in ("logits", "dlp.corrected", last, "wanda.perplexity"):
            assert own[step] < chained[step] / 2, step
        assert all(np.isfinite(x) for x in own.values())


def test_a_case_beyond_the_range_of_float16_is_refused() -> None:
    case = case_of("llama")
    large = {k: v * 1e6 if k.endswith("resid_pre") else v for k, v in case.expected.items()}
    with pytest.raises(RefimplError, match="float16"):
        check(
            replace(case, expected=large),
            {"logits": case.expected["logits"].astype(np.float16)},
            stepwise=True,
        )


def test_the_command_says_which_way(tmp_path: Path) -> None:
    path, xml = tmp_path / "actual.safetensors", tmp_path / "report.xml"
    case = case_of("llama")
    actual = {k: np.ascontiguousarray(v) for k, v in computed("llama").items()}
    save_file(actual, path)
    for words, way in ((("--stepwise",), "stepwise"), ((), "chained")):
        done = run("check", case.folder, path, "--json", "--junit-xml", xml, *words)
        assert (done.code, json.loads(done.out)["way"]) == (0, way)
        name = ElementTree.parse(xml).getroot().get("name")
        assert name == f"refimpl llama, {way}"
        assert f"float32, {way}" in run("check", case.folder, path, *words).out
    save_file(actual | {"blocks.1.q": -actual["blocks.1.q"]}, path)
    done = run("check", case.folder, path, "--stepwise")
    assert done.code == 1
    assert done.out.splitlines()[-1].endswith("--only 'blocks.1.q' --stepwise")


def test_the_plugin_does_both(tmp_path: Path) -> None:
    case = case_of("opt")
    wanted = Wanted(SimpleNamespace(name="opt"), ("*",))  # type: ignore[arg-type]
    trial = Trial(case, wanted, lambda: tmp_path)
    assert trial.expected is case.expected
    assert trial.check(computed("opt"), stepwise=True).stepwise
    assert not trial.check(computed("opt")).stepwise
    with pytest.raises(AssertionError, match="opt diverges, first at embed"):
        trial.check(computed("opt") | {"embed": -computed("opt")["embed"]}, stepwise=True)


# The sample project, in torch.


def candidate(case: str, dtype: str, output: Path, project: Path = PROJECT) -> None:
    """Run it, as a reader would."""
    words = [project / "candidate.py", CASES / case, "-o", output, "--dtype", dtype, "--stepwise"]
    done = subprocess.run(
        [sys.executable, "-W", "error", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_the_sample_project_passes(name: str, dtype: str, tmp_path: Path) -> None:
    actual = tmp_path / "actual.safetensors"
    candidate(name, dtype, actual)
    found, truth = load_shapes(actual), load_shapes(CASES / name / "expected.safetensors")
    assert found == truth
    checked = run("check", CASES / name, actual, "--stepwise", "--dtype", dtype, "--json")
    report = json.loads(checked.out)
    assert checked.code == 0, report["first"]
    assert {step["status"] for step in report["steps"]} == {"pass"}


def load_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from refimpl.oracle.check import read_candidate

    return {name: x.shape for name, x in read_candidate(path).items()}


# The file, what it says, what it says instead, the case, the dtype, and which steps diverge, by
# their last words; of a mistake in the forward, which of the forward's.
BROKEN = {
    "a window one token longer": (
        "forward.py", "back >= window", "back > window", "mistral", "bfloat16",
        {"attn_out", "resid_mid", "mlp_norm", "mlp_out", "resid_post"},
    ),
    "eps left out": (
        "forward.py", " + eps) * scale", ") * scale", "llama", "float32",
        {
            "attn_norm", "q", "k", "v", "q_rope", "k_rope", "attn_out", "resid_mid", "mlp_norm",
            "mlp_out", "resid_post", "final_norm",
        },
    ),
    "a push that is not scaled": (
        "experiment.py", 'recipe["eta"] * size / unit', 'recipe["eta"] / unit',
        "qwen2", "float16", {"drift", "absorption_coefficient"},
    ),
    "AlphaPruning without its slip": (
        "signals.py", "torch.log10(0.95 * left)", "0.95 * left", "qwen3", "float32", {"signal"},
    ),
    "remainders the wrong way": (
        "allocation.py", "(whole[i] - quotas[i], i)", "(quotas[i] - whole[i], i)",
        "llama", "float32", {"counts"},
    ),
    "Wanda over the matrix": (
        "pruning.py", "else wanda_keep(score, some)",
        "else ~lowest(score.flatten(), some).reshape(score.shape)",
        "gpt2", "bfloat16", {"keep"},
    ),
    "SparseGPT that makes up for half": (
        "pruning.py", "left[:, j + 1 :].sub_(torch.outer(lost,",
        "left[:, j + 1 :].sub_(torch.outer(lost / 2,", "qwen3", "bfloat16", {"weight"},
    ),
}  # fmt: skip


@pytest.mark.torch
@needs_torch
@pytest.mark.parametrize("mistake", BROKEN)
def test_a_broken_line_is_named_where_it_is(mistake: str, tmp_path: Path) -> None:
    file, line, instead, case, dtype, kinds = BROKEN[mistake]
    project, actual = tmp_path / "project", tmp_path / "actual.safetensors"
    shutil.copytree(PROJECT, project, ignore=shutil.ignore_patterns("__pycache__"))
    text = (project / file).read_text("utf-8")
    assert text.count(line) == 1, f"{file} has {text.count(line)} of {line!r}"
    (project / file).write_text(text.replace(line, instead), "utf-8")
    candidate(case, dtype, actual, project)
    checked = run("check", CASES / case, actual, "--stepwise", "--dtype", dtype, "--json")
    assert checked.code == 1, checked.out
    found = [x["step"] for x in json.loads(checked.out)["steps"] if x["status"] == "divergent"]
    forward = [step for step in found if stage_of(step) == "forward"]
    assert {step.rsplit(".", 1)[-1] for step in forward or found} == kinds
    print(f"{mistake}, {dtype}: {len(found)} steps")
