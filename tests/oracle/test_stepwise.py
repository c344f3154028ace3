"""Steps computed from the case's own values: each is judged by itself."""

from collections.abc import Callable
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from functools import cache

import numpy as np
import pytest
from candidates import EACH_CASE, Arrays, stepwise_steps, written
from gates import case_of, model_of

from refimpl.loading.samples import random_tokens
from refimpl.model.model import Model
from refimpl.oracle.case import Case, computed_case
from refimpl.oracle.check import check
from refimpl.oracle.measures import error_of, stage_of
from refimpl.oracle.recipe import Recipe
from refimpl.oracle.steps import steps


@pytest.mark.parametrize("name", EACH_CASE)
def test_in_float64_every_step_comes_to_the_truth(name: str) -> None:
    """Nothing else than the case's values is needed for any step, and no choice goes astray."""
    case = case_of(name)
    arrays = stepwise_steps(case)
    for step, truth in case.expected.items():
        if truth.dtype.kind == "f":
            np.testing.assert_allclose(
                arrays[step], truth, rtol=1e-9, atol=1e-12, err_msg=step
            )
        else:
            assert np.array_equal(arrays[step], truth), step


@pytest.mark.parametrize(
    ("fixture", "length"), [("llama_dynamic", 12), ("phi3_longrope", 9)]
)
def test_where_rotary_tables_depend_on_the_length_it_is_one(
    fixture: str, length: int
) -> None:
    """The last token is predicted, and an input, too: with it the tables are others."""
    model = model_of(fixture)
    tokens = random_tokens(model.config.vocab_size, 2, length)
    case = computed_case(model, tokens, Recipe(bases=("owl",), draws=1))
    z = case.expected["logits"][:, :-1]
    right = np.take_along_axis(z, tokens.ids[:, 1:, None], -1)[..., 0]
    nats = np.log(np.exp(z).sum(axis=-1)) - right
    np.testing.assert_allclose(
        case.expected["dense.perplexity"], np.exp(nats.mean()), 1e-12
    )
    arrays = stepwise_steps(case)
    perplexities = [step for step in case.expected if step.endswith(".perplexity")]
    assert len(perplexities) == 6
    for step in perplexities:
        np.testing.assert_allclose(
            arrays[step], case.expected[step], 1e-12, err_msg=step
        )


def wrong_in_block(case: Case, index: int, change: Callable[[Arrays], Arrays]) -> Case:
    """The case with a model that is wrong in one block."""

    class Wrong(Model):
        def block(
            self, i: int, dtype: object, each: Callable[..., object] = map
        ) -> Arrays:
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
    arrays = steps(wrong.model, case.inputs["token_ids"], case.recipe, np.float32)
    chained = written(case, arrays, "float32")
    found = [x.step for x in check(case, chained).steps if x.status == "divergent"]
    assert [step for step in found if stage_of(step) == "forward"] == ["blocks.1.v"]
    assert error_of("logits", chained["logits"], case.expected["logits"])[0] > 0.1


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
    x = case.expected[step]
    if step.endswith(".products"):
        x = x + np.diag(np.linspace(0, np.trace(x), len(x)))
    else:  # other numbers, of the same size and the same sum
        x = np.roll(x, 1, axis=-1 if x.ndim != 2 or len(x) == 1 else 0)
    other = replace(case, expected={**case.expected, step: x})
    before, after = right_steps(), stepwise_steps(other)
    changed = {x for x in case.expected if not np.array_equal(before[x], after[x])}
    matched = {
        pattern: {x for x in changed if fnmatchcase(x, pattern)} for pattern in patterns
    }
    assert all(matched.values()), matched
    assert changed == set().union(*matched.values())
