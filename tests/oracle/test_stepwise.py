"""Candidates that are fed the case's own values: each step is judged by itself."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from candidates import (
    CASE_NAMES,
    EACH_CASE,
    Arrays,
    StoredModel,
    by_turns,
    computed,
    read_cases_once,
    write_arrays,
    written,
)
from gates import case_of, model_of
from program import ran, run

from refimpl.loading.samples import random_tokens
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.oracle.case import Case, computed_case, stepwise_steps
from refimpl.oracle.check import check
from refimpl.oracle.measures import FORWARD, stage_of, worst_token
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import ARITHMETIC
from refimpl.oracle.steps import steps
from refimpl.oracle.truth import own_errors
from refimpl.pruners.counts import split_count

CHOICES = (".keep", ".counts", "owl.signal")


def divergent(case: Case, actual: Arrays, stepwise: bool = True) -> list[str]:
    report = check(case, actual, stepwise=stepwise)
    return [step.step for step in report.steps if step.status == "divergent"]


@pytest.mark.parametrize("name", EACH_CASE)
def test_in_float64_every_step_comes_to_the_truth(name: str) -> None:
    """Nothing else than the case's values is needed for any step, and no choice goes astray."""
    case = case_of(name)
    arrays = stepwise_steps(case)
    for step, truth in case.expected.items():
        if truth.dtype.kind == "f":
            np.testing.assert_allclose(arrays[step], truth, rtol=1e-9, atol=1e-12, err_msg=step)
        else:
            assert np.array_equal(arrays[step], truth), step


@pytest.mark.parametrize(("fixture", "length"), [("llama_dynamic", 12), ("phi3_longrope", 9)])
def test_where_rotary_tables_depend_on_the_length_it_is_one(fixture: str, length: int) -> None:
    """The last token is predicted, and an input, too: with it the tables are others."""
    model = model_of(fixture)
    tokens = random_tokens(model.config.vocab_size, 2, length)
    case = computed_case(model, tokens, Recipe(bases=("owl",), draws=1))
    z = case.expected["logits"][:, :-1]
    right = np.take_along_axis(z, tokens.ids[:, 1:, None], -1)[..., 0]
    nats = np.log(np.exp(z).sum(axis=-1)) - right
    np.testing.assert_allclose(case.expected["dense.perplexity"], np.exp(nats.mean()), 1e-12)
    arrays = stepwise_steps(case)
    perplexities = [step for step in case.expected if step.endswith(".perplexity")]
    assert len(perplexities) == 6
    for step in perplexities:
        np.testing.assert_allclose(arrays[step], case.expected[step], 1e-12, err_msg=step)


@pytest.mark.parametrize(("name", "dtype"), by_turns(CASE_NAMES, "bfloat16", "float16"))
def test_other_right_arithmetic_in_16_bits_passes(name: str, dtype: str) -> None:
    """No choice that goes the other way leaves a step without judgement."""
    case = case_of(name)
    stored = replace(case, model=StoredModel.of(case.model, ARITHMETIC[dtype]))
    actual = written(case, stepwise_steps(stored, np.float32), dtype)
    report = check(case, actual, stepwise=True)
    assert report.verdict != "fail"
    unresolved = [step for step in report.steps if step.status != "pass"]
    assert not [step for step in unresolved if stage_of(step.step) == "allocation"]
    assert all(x.tolerance > 0.25 for x in unresolved if stage_of(x.step) == "forward")
    assert all(step.step.endswith(CHOICES) for step in report.steps if step.near_ties)


def rolled(x: Array) -> Array:
    """Other numbers, of the same size and the same sum."""
    return np.roll(x, 1, axis=-1 if x.ndim != 2 or len(x) == 1 else 0)


def heavier(x: Array) -> Array:
    """Another Hessian."""
    return x + np.diag(np.linspace(0, np.trace(x), len(x)))


def wrong_in_block(case: Case, index: int, change: Callable[[Arrays], Arrays]) -> Case:
    """The case with a model that is wrong in one block."""

    class Wrong(Model):
        def block(self, i: int, dtype: object, each: Callable[..., object] = map) -> Arrays:
            weights = super().block(i, dtype, each)  # type: ignore[arg-type]
            return change(weights) if i == index else weights

    facts = {field.name: getattr(case.model, field.name) for field in fields(Model)}
    return replace(case, model=Wrong(**facts))


def test_a_mistake_stays_in_its_block() -> None:
    """Of a candidate that ran from the tokens, too: the step that is wrong, and no other."""
    case = case_of("llama")
    wrong = wrong_in_block(
        case, 1, lambda w: w | {"v_proj.weight": np.roll(w["v_proj.weight"], 1, axis=0)}
    )
    actual = written(case, stepwise_steps(wrong, np.float32), "float32")
    arrays = steps(wrong.model, case.inputs["token_ids"], case.recipe, np.float32)
    chained = written(case, arrays, "float32")
    for candidate, stepwise in ((actual, True), (chained, False)):
        found = divergent(case, candidate, stepwise)
        assert [step for step in found if step.split(".")[0] in FORWARD] == ["blocks.1.v"]
    assert worst_token(chained["logits"], case.expected["logits"])[0] > 0.1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_number_that_is_off_is_the_only_step_named(dtype: str) -> None:
    actual, step = computed("llama", dtype, stepwise=True), "blocks.1.resid_post"
    wrong = actual | {step: actual[step] * np.float32(1.01)}
    assert divergent(case_of("llama"), wrong) == [step]


# A value of the case that is changed, and how; and the steps that change with it, as patterns, all
# of which must match something. This is the table of docs/how-to/check.md.
READ_BY: dict[str, str] = {
    "blocks.1.resid_pre": (
        "blocks.1.[!r]* blocks.1.resid_mid blocks.1.resid_post owl.signal dlp.signal "
        "dlp_median.signal pruned.1.* pruned.blocks.1.* pruned.absorption_coefficient "
        "pruned.divergence"
    ),
    "blocks.1.resid_post": (
        "blocks.2.resid_pre perturbed.[01].* coarse.[01].* pruned.[01].* *absorption_coefficient "
        "coarse.stderr"
    ),
    "blocks.3.resid_post": (
        "perturbed.* coarse.[0-3].* pruned.[0-3].* *absorption_coefficient coarse.stderr "
        "pruned.divergence final_norm"
    ),
    "final_norm": "logits",
    "blocks.1.q": "",
    "perturbed.1.drift": "",
    "logits": "dense.perplexity",
    "alphapruning.signal": ("alphapruning.base alphapruning.corrected"),
    "dlp.signal": "dlp.base dlp.corrected",
    "absorption_coefficient": "*.corrected",
    "dlp.corrected": "dlp.counts",
    "owl.counts": "wanda.*.keep sparsegpt.*.keep magnitude.*.keep",
    "wanda.blocks.1.mlp_norm.squares": "wanda.blocks.1.[gu]*_proj.keep",
    "wanda.blocks.3.mlp_hidden.squares": "wanda.blocks.3.down_proj.[ks]*",
    "wanda.blocks.1.q_proj.keep": "wanda.blocks.[23].*.squares wanda.perplexity",
    "wanda.blocks.0.q_proj.keep": "wanda.blocks.0.q_proj.weight wanda.*.squares wanda.perplexity",
    "pattern.blocks.3.q_proj.keep": "pattern.perplexity",
    "sparsegpt.blocks.0.attn_heads.products": (
        "sparsegpt.blocks.0.o_proj.keep sparsegpt.blocks.0.o_proj.weight"
    ),
    "sparsegpt.blocks.0.o_proj.keep": "sparsegpt.blocks.0.o_proj.weight",
    "sparsegpt.blocks.0.o_proj.weight": (
        "sparsegpt.blocks.[12].*.keep sparsegpt.blocks.3.*.products sparsegpt.perplexity"
    ),
    "sparsegpt.blocks.2.o_proj.keep": "sparsegpt.blocks.3.*.products sparsegpt.perplexity",
    "sparsegpt.perplexity": "",
}


@cache
def right_steps() -> Arrays:
    """What the case's own values lead to."""
    return stepwise_steps(case_of("llama"))


@pytest.mark.parametrize("step", READ_BY)
def test_a_step_is_computed_from_what_the_page_says(step: str) -> None:
    """Change a value of the case: the steps that are computed from it change, and no others."""
    case, patterns = case_of("llama"), READ_BY[step].split()
    change = heavier if step.endswith(".products") else rolled
    other = replace(case, expected={**case.expected, step: change(case.expected[step])})
    before, after = right_steps(), stepwise_steps(other)
    changed = {x for x in case.expected if not np.array_equal(before[x], after[x])}
    matched = {pattern: {x for x in changed if fnmatchcase(x, pattern)} for pattern in patterns}
    assert all(matched.values()), matched
    assert changed == set().union(*matched.values())


@pytest.mark.thorough
def test_16_bits_are_judged_more_closely_than_chained() -> None:
    """Errors and choices do not pile up: refimpl itself is less far off.

    Steps of many numbers show it; a perplexity is one, whose error may be near 0 by chance.
    """
    for name in ("llama", "qwen3"):
        own, chained = (own_errors(case_of(name), "bfloat16", way) for way in (True, False))
        last = f"wanda.blocks.{case_of(name).model.config.num_blocks - 1}.up_proj.score"
        for step in ("logits", "dlp.corrected", last):
            assert own[step] < chained[step] / 2, step
        assert all(np.isfinite(x) for x in own.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    "step",
    ["owl.base", "dlp.corrected", "uniform.counts", "alphapruning.signal"],
)
def test_what_is_computed_from_numbers_is_judged_as_float32(step: str, dtype: str) -> None:
    """No number of 16 bits is behind it; written in 16 bits it is half a unit off."""
    case = case_of("gpt2")
    right = case.expected[step]
    wrong, forms = right.copy(), [right]
    if step.endswith(".counts"):
        sizes = case.model.config.linear_sizes
        for i, more in ((0, 4), (1, -4)):
            wrong[i] = split_count(int(right[i].sum()) + more, sizes[i])
    else:
        wrong[:2] += 1e-4 * np.array([1, -1]).reshape(2, *[1] * (right.ndim - 1))  # the same sum
        narrow = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
        forms += [right.astype(np.float32), right.astype(narrow)]
    for form in forms:
        assert check(case, {step: form}, (step,), dtype, stepwise=True).verdict == "pass"
    assert check(case, {step: wrong}, (step,), dtype, stepwise=True).verdict == "fail"


def test_the_command_says_which_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_cases_once(monkeypatch)
    case, actual = case_of("llama"), computed("llama", stepwise=True)
    path = write_arrays(tmp_path / "actual.safetensors", actual)
    for words, way in ((("--stepwise",), "stepwise"), ((), "own inputs")):
        out = ran("check", case.folder, path, "--json", *words)
        assert json.loads(out)["way"] == way
        assert f"float32, {way}" in ran("check", case.folder, path, *words)
    assert check(case, actual, ("embed",), chained=True).way == "chained"
    write_arrays(path, actual | {"blocks.1.q": -actual["blocks.1.q"]})
    done = run("check", case.folder, path, "--stepwise")
    assert done.code == 1
    assert done.out.splitlines()[-1].endswith("--only 'blocks.1.q' --stepwise")
