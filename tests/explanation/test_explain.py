"""`refimpl explain` shows the numbers of `score`, and of each family only the steps it has."""

import json
import re
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import LAYOUTS, layouts, model_of
from program import ran, refused
from refusals import refusal_of
from tables import cases

from refimpl import Noise, Probes, Request, allocate, forward, score
from refimpl.bases.base import bases
from refimpl.explanation.explain import explain, steps_of
from refimpl.loading.families import FAMILIES
from refimpl.loading.samples import Tokens, random_tokens
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.running.settings import Settings
from refimpl.scoring.base_signals import signals_of
from refimpl.show.explain import explanation_document, explanation_text

thorough = pytest.mark.thorough
MODELS = tuple(
    name if name == "llama4_text" else name.removesuffix("_text") for name in FAMILIES
)
BLOCK = (
    "attn_norm",
    "qkv",
    "qk_norm",
    "rope",
    "attention",
    "attn_out",
    "resid_mid",
    "mlp_norm",
    "routing",
    "mlp_out",
    "block_embed",
    "resid_post",
)
STEPS = (
    "tokens",
    "embed",
    *BLOCK,
    "head",
    "perturb",
    "drift",
    "ratio",
    "coefficient",
    "signals",
    "base",
    "correction",
    "projection",
    "counts",
    "wanda",
    "loss",
)
OTHERWISE: Any = {"noise_norm": "expected", "sink": "exclude"}
OF_PRUNING = Request("owl", {}, 0.7, "divergence", 0.1)
PLANS = {
    "default": (Noise(), Request(correct="absorption")),
    "lsa, all options of the noise": (
        Noise(eta=(0.3,), draws=2, seed=7, **OTHERWISE),
        Request("lsa", {"block": 8}, 0.5, "absorption"),
    ),
    "alphapruning": (
        Noise(),
        Request("alphapruning", {"fit": "mid"}, 0.6, "absorption", 0.2),
    ),
    "pruning, absorption": (Probes(), Request("dlp", {}, 0.5, "absorption", 0.1)),
    "pruning, divergence": (Probes(), OF_PRUNING),
    "pruning by SparseGPT": (Probes(pruner="sparsegpt"), OF_PRUNING),
    "pruning by magnitude": (Probes(pruner="magnitude"), OF_PRUNING),
    "pruning at random": (
        Probes(pruner="random", seed=3),
        Request("owl", {}, 0.7, "absorption", 0.1),
    ),
    "measured": (Probes(), Request("uniform", {}, 0.7, "divergence")),
    "peer": (Noise(), Request("atp", {"beta": 0.05}, 0.7, None, compat="peer")),
}


def tokens_of(name: str, samples: int = 2) -> Tokens:
    return random_tokens(model_of(name).config.vocab_size, samples, 12, 3)


def near(a: Any, b: Any) -> None:
    size = np.abs(b).max(initial=0.0, where=np.isfinite(b))
    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14 * size)


# three families with all, of which one by default, some with two
CASES = [
    pytest.param(name, case, marks=thorough if name in ("gemma2", "gpt_neox") else ())
    for name in (
        "llama",
        "gemma2",
        "gemma3",
        "gpt_neox",
        "gpt2",
        "smollm3",
        "olmo2",
        "granite",
    )
    for case in PLANS
    if name in ("llama", "gemma2", "gpt_neox")
    or case in ("default", "pruning, absorption")
]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_numbers_are_those_of_score(name: str, case: str) -> None:
    model, tokens = model_of(name), tokens_of(name)
    plan, request = PLANS[case]
    k = (
        -([*PLANS].index(case) % 2) % model.config.num_blocks
    )  # the first block or the last
    shown = explain(model, tokens, k, None, plan, request, dtype=np.float64).figure
    scores = score(model, tokens, plan, request, dtype=np.float64)
    made, found = allocate(scores, request), scores.sweep[0]

    near(shown("drift", "R_k"), found.drift[k, k:])
    near(shown("drift", "A_k"), found.alignment[k, k:])
    near(shown("ratio", "r_l"), found.coefficient[k])
    near(shown("ratio", "stderr"), found.stderr[k])
    near(shown("coefficient", "r"), found.coefficient)
    near(shown("coefficient", "stderr"), found.stderr)
    for base, signal in scores.signals.items():
        near(shown("signals", bases()[base].symbol), signal.main)
    sizes = scores.linear_sizes[k]
    alone = signals_of(
        model, Request("dlp", correct=None), tokens, Settings(np.float64)
    )
    near((shown("signals", "mean M") * sizes).sum() / sizes.sum(), alone["dlp"].main[k])
    if request.compat == "exact":
        near(shown("projection", "base"), made.base_sparsity)
        near(shown("projection", "s"), made.corrected_sparsity)
        near(shown("projection", "sum N_l s_l / N"), request.sparsity)
    if request.measured:
        assert made.growth is not None
        near(shown("growth", "a"), made.growth.level)
        near(shown("growth", "kappa"), made.growth.rate)
        near(shown("growth", "residual"), made.growth.residual)
    elif request.compat == "exact":
        c, base = shown("correction", "c"), shown("base", "base")
        moved = base + (c if base.ndim == 1 else c[:, None])
        shifts = (
            made.linear_sparsity.T if base.ndim == 1 else made.linear_sparsity
        ) - moved
        np.testing.assert_allclose(
            shifts, shifts.flat[0], atol=1e-12
        )  # all by the one t
    assert shown("counts", "n_l").tolist() == made.num_pruned.tolist()
    assert shown("counts", "n_j").tolist() == made.linear_pruned[k].tolist()
    assert shown("counts", "Z") == made.total_pruned
    assert shown("wanda", "pruned") == made.linear_pruned[k, 0]


def test_sinks_are_left_out_as_score_leaves_them_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "refimpl.method.perturbation.SINK_FACTOR", 1.0
    )  # half of the tokens
    model, tokens, plan = model_of("llama"), tokens_of("llama"), Noise(sink="exclude")
    shown = explain(model, tokens, 1, plan=plan, dtype=np.float64).figure
    scores = score(model, tokens, plan, dtype=np.float64)
    near(shown("drift", "R_k"), scores.sweep[0].drift[1, 1:])
    near(shown("ratio", "r_l"), scores.sweep[0].coefficient[1])
    assert shown("perturb", "tokens left out") == scores.sinks[1] > 0


@pytest.mark.parametrize("name", layouts(MODELS, ("llama", *LAYOUTS)))
def test_the_forward_is_the_forward(name: str) -> None:
    model, tokens = model_of(name), tokens_of(name)
    out = forward(model, tokens.ids[:1], trace=True, dtype=np.float64)
    for k in range(model.config.num_blocks):
        shown = explain(model, tokens, k, dtype=np.float64)
        names, text = [step.name for _, step, _ in shown.steps], explanation_text(shown)
        assert max(map(len, text.splitlines())) <= 100
        assert re.findall(r"^\d+/\d+ (\w+): ", text, re.MULTILINE) == names
        sums = ("attn_out", "resid_mid", "mlp_out", "resid_post")
        for point in (
            x for x in sums if f"blocks.{k}.{x}" in out.trace
        ):  # half a block lacks one
            expected = out.trace[f"blocks.{k}.{point}"]
            np.testing.assert_allclose(
                shown.figure(point, point), expected, 1e-9, 1e-12
            )
        mixer = model.config.mixer(k)
        if not isinstance(mixer, Attention):
            for point in (
                x for x in mixer.points if x in model.config.blocks[k].points
            ):
                expected = out.trace[f"blocks.{k}.{point}"]
                near(shown.figure(mixer.name, point), expected)
            continue
        for letter in "qkv":
            normed = letter != "v" or "v_norm" in model.config.weightless_norms
            step = "qk_norm" if "qk_norm" in names and normed else "qkv"
            near(shown.figure(step, letter), out.trace[f"blocks.{k}.{letter}"])
        np.testing.assert_allclose(
            shown.figure("head", "logits"), out.logits[0, -1], atol=1e-9
        )
        near(shown.figure("embed", "h_0"), out.trace["embed"])
        total = shown.figure("attention", "sum of weights")
        assert (
            total < 0.999
            if f"blocks.{k}.sinks" in model.weights
            else abs(total - 1) < 1e-12
        )
        normed = {f"blocks.{k}.{role}.weight" for role in ("q_norm", "q_width_norm")}
        assert ("qk_norm" in names) == bool(normed & model.weights.keys())
        assert ("rope" in names) == (f"blocks.{k}.q_rope" in out.trace)
        assert names == [step for step in STEPS if step in names]


def test_one_step_computes_no_more_than_it_shows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the experiment was run")

    monkeypatch.setattr("refimpl.explanation.shown_values.score", refuse)
    model, tokens = model_of("llama"), tokens_of("llama")
    names = [x.name for x in steps_of(model, 1, Noise(), Request(correct="absorption"))]
    for step in names[: names.index("coefficient")]:
        assert [s.name for _, s, _ in explain(model, tokens, 1, step).steps] == [step]
    with pytest.raises(AssertionError, match="the experiment"):
        explain(model, tokens, 1, "coefficient")


def test_the_program_shows_one_step_and_its_code() -> None:
    few = ("--samples", 2, "--seq-len", 8)
    shown = ran("explain", FIXTURES / "llama", "--step", "rope", "--source", *few)
    assert "4/23" not in shown
    assert "5/23 rope" in shown
    assert (
        "    def rotate(x: Array, cos: Array, sin: Array, interleaved: bool = False)"
        in shown
    )
    assert (
        ran("explain", FIXTURES / "llama", "--source", *few).count("    def rms_norm(")
        == 1
    )


def test_the_document_says_what_the_text_says() -> None:
    words = ("--block", 2, "--samples", 1, "--json")
    document = json.loads(ran("explain", FIXTURES / "opt", *words))
    model = model_of("opt")
    tokens = random_tokens(model.config.vocab_size, 1, 32)
    assert document == json.loads(
        json.dumps(explanation_document(explain(model, tokens, 2)))
    )
    steps = {step["name"]: step for step in document["steps"]}
    assert (
        steps["coefficient"]["figures"][1]["first"] == [None] * 3
    )  # one sample: no error
    assert "refimpl.model.ops.relu" in steps["mlp_out"]["functions"]


@pytest.mark.parametrize(("words", "said"), cases("explanation", "refused"))
def test_what_cannot_be_used_is_refused(words: tuple[object, ...], said: str) -> None:
    assert refused("explain", FIXTURES / "llama", *words).startswith(f"error: {said}")


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    tokens = Tokens(np.array([[999]]), "by hand", "ids")
    refusal_of(explain, model_of("llama"), tokens, says="outside the vocabulary")
