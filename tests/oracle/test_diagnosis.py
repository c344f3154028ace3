"""Mistakes are found at their step, and the report says which one gives the candidate's numbers."""

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from itertools import takewhile
from re import sub

import numpy as np
import pytest
from candidates import Arrays, computed, written
from crafted_cases import oracle_case
from gates import case_of, model_of

from refimpl.loading.samples import Tokens
from refimpl.model.ops import Array
from refimpl.oracle import diagnosis as diagnosis_module
from refimpl.oracle import variants
from refimpl.oracle.case import Case, case_inputs, computed_case
from refimpl.oracle.check import check, ties_of
from refimpl.oracle.diagnosis import alternatives, diagnosis
from refimpl.oracle.measures import error_of, step_result
from refimpl.oracle.mutations import reworded
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.rounding import ChangedModel
from refimpl.oracle.steps import every_array
from refimpl.oracle.truth import truth_of
from refimpl.oracle.variants import VARIANTS, Mistake

NAMED = {words for _, words, _ in VARIANTS}
FORWARD = Recipe(only=("embed", "blocks.*", "final_norm", "logits"))
FAMILIES = (
    "gpt_oss",
    "qwen3_5",
    "granitemoehybrid",
    "deepseek_v3",
    "gptj",
    "lfm2",
    "qwen2_moe",
)


@cache
def forward_case(name: str) -> Case:
    ids = np.random.default_rng(0).integers(5, 40, (2, 24))
    return computed_case(model_of(name), Tokens(ids, "drawn uniformly", "ids"), FORWARD)


def mistaken(case: Case, change: Mistake, step: str) -> Arrays:
    """A candidate in float32 that makes a mistake wherever it can, from the tokens to a step."""
    inputs = replace(case_inputs(case, dtype=np.float32), wanted={step})
    inputs = replace(inputs, model=inputs.model.as_kind(ChangedModel))
    with change.made(inputs) as other:
        arrays = every_array(other)
    every = written(case, {**case.expected, **arrays}, "float32")
    return {k: x for k, x in every.items() if k in arrays}


# A mistake of each kind, and the first step that goes wrong, on the case "llama" or another.
MADE: dict[str, tuple[str, ...]] = {
    "eps is added outside the root": ("blocks.0.attn_norm",),
    "positions begin at 1": ("blocks.0.q_rope",),
    "softmax is over the queries": ("blocks.0.attn_out",),
    "key-value heads are tiled (h % K), not repeated": ("blocks.0.attn_out",),
    "the mask shows the next token": ("blocks.0.attn_out",),
    "the activation is applied to gate * up": ("blocks.0.mlp_out",),
    "lm_head is tied to the embeddings": ("logits",),
    "noise has the size eta, whatever the state's": ("perturbed.0.drift",),
    "noise is not scaled to the state": ("perturbed.0.drift",),
    "it is a ratio of means": ("pruned.absorption_coefficient",),
    "the line is a multiple of the median": ("owl.signal",),
    "the exponent is n / sum, without the 1": ("alphapruning.signal",),
    "singular values are not squared": ("alphapruning.signal",),
    "it is added to the projected base": ("owl.corrected", "bound"),
    "the correction is not centred": ("owl.corrected",),
    "each linear is rounded down": ("owl.counts",),
    "outputs are compared, not inputs": ("pruned.blocks.0.q_proj.keep",),
    "there is no damping": ("sparsegpt.blocks.0.q_proj.keep",),
    "the damping is a plain number": ("sparsegpt.blocks.0.q_proj.keep",),
    "the highest scores go": ("pruned.blocks.0.q_proj.keep",),
    "it is in nats": ("dense.perplexity",),
}


@pytest.mark.parametrize("words", MADE)
def test_a_mistake_is_named_at_its_step(words: str) -> None:
    step, *name = MADE[words]
    case = oracle_case(*name or ["llama"])
    (change, *_) = (
        x for pattern, k, x in VARIANTS if k == words and fnmatchcase(step, pattern)
    )
    wrong = mistaken(case, change, step)
    first = check(case, wrong, tuple(wrong)).first
    assert first is not None
    assert (first.step, first.diagnosis.partition(" if ")[2]) == (step, words)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["llama", *FAMILIES])
def test_each_mistake_with_an_effect_is_found_and_named(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step is wrong by it; another mistake may have the same numbers there."""
    case = forward_case(name) if name in FAMILIES else oracle_case(name)
    right, found, near = (
        written(case, dict(case.expected), "float32"),
        set[str](),
        set[str](),
    )
    truth = truth_of(case, right, "float32")
    kinds = {
        sub(r"\d+|\w+_proj", "", x): x for x in reversed(case.expected)
    }  # of one linear
    for step in kinds.values():
        monkeypatch.setattr(
            variants, "VARIANTS", [x for x in VARIANTS if x[1] not in found]
        )
        every = [*takewhile(lambda x: x[0] in NAMED, alternatives(truth, step))]
        monkeypatch.setattr(
            diagnosis_module, "alternatives", lambda *_, every=every: iter(every)
        )
        allowed = truth.own_error(step), truth.tolerance(step)
        for words, value in every:
            if value.shape != case.expected[step].shape or "of equal scores" in words:
                continue  # either of two equal scores may go
            if not error_of(step, value, truth.values[step])[0] > 4 * allowed[1]:
                continue
            wrong = right | {step: value.astype(right[step].dtype)}
            judged = replace(truth, actual=wrong)
            result = step_result(step, wrong, truth.values[step], *allowed)
            tied = not result.fault and ties_of(judged, step, value)
            if tied and step.endswith(".counts"):
                near.add(words)
                continue
            assert (result.status, tied or ()) == ("divergent", ()), (step, words)
            assert result.fault or " if " in diagnosis(judged, result), (step, words)
            found.add(words)
    assert near <= found


def wrong_parts() -> Iterator[tuple[str, Array, str]]:
    right = {
        k.removeprefix("blocks.1."): x for k, x in case_of("llama").expected.items()
    }
    x, q, dlp = right["attn_out"], right["q"], right["dlp.signal"]
    some = np.where(np.arange(12)[:, None] > 3, x**2, x)
    yield "blocks.1.attn_out", some, "wrong: tokens 4 to 11 of 12"
    heads = np.isin(np.arange(q.shape[1]), (1, 3))[:, None, None]
    yield "blocks.1.q", np.where(heads, np.cos(q), q), "wrong: heads 1, 3 of 4"
    yield "dlp.signal", dlp * [1, 1, 1.3, 1], "wrong: blocks 2 of 4"
    yield "blocks.1.resid_mid", right["resid_pre"] + 2 * x, " if attn_out counts twice"


@pytest.mark.parametrize(("step", "value", "words"), [*wrong_parts()])
def test_what_is_wrong_is_described(step: str, value: Array, words: str) -> None:
    actual = computed("llama") | {step: value.astype(np.float32)}
    first = check(case_of("llama"), actual, (step,)).first
    assert first is not None
    assert first.diagnosis.endswith(words)


def test_a_step_in_float32_among_float64_is_named_by_its_size() -> None:
    case, step = case_of("llama"), "blocks.1.mlp_out"
    narrow = case.expected[step].astype(np.float32).astype(np.float64)
    first = check(case, {**case.expected, step: narrow}, dtype="float64").first
    assert first is not None
    assert first.step == step
    assert first.diagnosis.endswith("the error has the size of float32 in some step")


def test_a_step_is_judged_from_its_block_if_nothing_is_written_between() -> None:
    """With the state before the block, smaller mistakes are seen in bfloat16."""
    case, step = forward_case("qwen2_moe"), "blocks.2.attn_out"
    names = ("resid_pre", "router.keep", "attn_out")
    inputs = case_inputs(replace(case, recipe=FORWARD), dtype=np.float32)
    arrays = written(case, every_array(inputs), "bfloat16")
    some = {k: x for k, x in arrays.items() if k.endswith(names)}
    alone = {step: arrays[step]}
    (within,), (chained,) = (
        check(case, x, (step,), "bfloat16").steps for x in (some, alone)
    )
    assert within.tolerance < chained.tolerance
    assert within.error < within.tolerance


def test_each_text_of_a_mistake_is_one_of_refimpl() -> None:
    """Its pieces occur once in the function, and what takes their place is an expression."""
    for _, words, change in VARIANTS:
        for function, texts in change.codes:
            assert reworded(function, texts) is not function.__code__, words
