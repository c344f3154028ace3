"""From a model to a pruned folder: what was asked for is what is in it, whatever happens."""

import json
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import altered, llama_of
from conftest import FIXTURES
from documents import facts, numbers
from gates import CASES, LAYOUTS, layouts, model_of
from peer_numbers import TINY
from program import ran, refused
from pruned_models import pruned_blocks
from refusals import refusal_of
from tables import cases

from refimpl import Model, Probes, Request, Scores, allocate, forward, read_model, score
from refimpl.allocation.scores_json import (
    Targets,
    pattern_targets,
    scores_document,
    targets_for,
)
from refimpl.bases.base import bases
from refimpl.loading.samples import Tokens, id_tokens, random_tokens
from refimpl.model.stream import Stream
from refimpl.pruners import pruner as pruner_module
from refimpl.pruners.counts import Pattern
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import Pruner
from refimpl.pruning.prune import prune
from refimpl.running.settings import Settings

LLAMA = FIXTURES / "llama"
METHODS: tuple[Pruner, ...] = ("wanda", "sparsegpt", "admm", "magnitude", "random")
SMALL = ("--samples", 3, "--seq-len", 12)


def targets_at(model: Model, sparsity: float) -> Targets:
    """As many weights of every linear as a sparsity says, and one more of each other one."""
    sizes = model.config.linear_sizes
    counts = (sizes * sparsity).astype(np.int64) + (sizes > 0) * (
        np.arange(sizes.shape[1]) % 2
    )
    made = {
        "base": "uniform",
        "base_options": {},
        "requested_sparsity": 0.6,
        "correct": None,
    }
    return Targets(counts, np.zeros(counts.shape), "exact", None, made)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def drawn(model: Model, samples: int = 3, length: int = 12) -> Tokens:
    return random_tokens(model.config.vocab_size, samples, length)


EVERY = list(product(("count", "pattern"), METHODS))


@pytest.mark.parametrize(
    ("case", "goal", "method"),
    [(case, *each) for case in LAYOUTS for each in EVERY]
    + [
        pytest.param(case, *EVERY[i % len(EVERY)], marks=pytest.mark.thorough)
        for i, case in enumerate(CASES)
        if case not in LAYOUTS
    ],
)
def test_the_file_holds_the_target(
    case: str, goal: str, method: Pruner, tmp_path: Path
) -> None:
    model = read_model(FIXTURES / case)
    config, out = model.config, tmp_path / "out"
    asked = targets_at(model, 0.6)
    if goal == "pattern":
        asked = pattern_targets(Pattern(2, 4), config.linears, "exact")
    tokens = drawn(model)
    found = prune(model, out, asked, PrunerOptions(method), tokens, threads=2)
    pruned = read_model(out)
    assert pruned.config == config
    for i, counts in enumerate(found.blocks):
        dense, sparse = (dict(x.block(i, np.float64)) for x in (model, pruned))
        assert dense.keys() == sparse.keys()
        for j, count in enumerate(counts.linears):
            before, after = (x.pop(f"{count.name}.weight") for x in (dense, sparse))
            zeros = int((after == 0).sum())
            assert count.pruned == asked.linear_pruned[i, j]
            assert count.zeros == zeros == count.pruned + count.kept_zeros
            assert count.weights == before.size
            if method not in ("sparsegpt", "admm"):
                assert np.array_equal(after[after != 0], before[after != 0])
            if goal == "pattern":
                assert ((after == 0).reshape(-1, 4).sum(axis=1) >= 2).all()
        for name in dense:
            assert np.array_equal(
                *(np.asarray(x[name]) for x in (dense, sparse))
            )  # or tables
    record = json.loads((out / "pruning.json").read_text())
    assert (
        record["total_requested"] == record["total_pruned"] == asked.linear_pruned.sum()
    )
    assert record["method"] == method
    assert record["pattern"] == ("2:4" if goal == "pattern" else None)
    assert (record["calibration"] is None) == (method in ("magnitude", "random"))
    if record["calibration"]:
        assert record["calibration"]["sha256"] == tokens.sha256
    linears = [linear for row in record["blocks"] for linear in row["linears"]]
    for key in ("requested", "pruned"):
        assert [x[key] for x in linears] == asked.linear_pruned[
            config.linear_sizes > 0
        ].tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_passed_blocks_are_those_of_the_file(
    method: Pruner, dtype: str, tmp_path: Path
) -> None:
    """What passes through the pruned blocks as they appear sees the weights of the file."""
    model, out = read_model(llama_of(tmp_path / "source", dtype)), tmp_path / "out"
    asked, tokens = targets_at(model, 0.5), drawn(model)
    prune(model, out, asked, PrunerOptions(method), tokens)
    sequences = {0: np.array([1, 5, 7, 3, 9]), 1: np.array([2, 4, 6])}
    pruned, on_the_way = read_model(out), Stream(model, sequences)
    in_the_file = Stream(pruned, sequences)
    with Settings(threads=2).open() as resources:
        for b in pruned_blocks(
            model, asked, PrunerOptions(method), tokens.ids, resources
        ):
            for stream, weights in (
                (on_the_way, b.weights),
                (in_the_file, pruned.block(b.index, np.float32)),
            ):
                stream.advance(
                    {n: stream.through(h, weights) for n, h in stream.states.items()}
                )
    for n in sequences:
        assert on_the_way.states[n].equals(in_the_file.states[n])


def test_linears_and_probes_share_factors_of_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []

    def counted(hessian: Any) -> bool:
        sizes.append(len(hessian))
        return factor_in_place(hessian)

    factor_in_place = pruner_module._factor_in_place
    monkeypatch.setattr(pruner_module, "_factor_in_place", counted)
    model = read_model(FIXTURES / "llama")
    tokens = random_tokens(264, 2, 12)
    request, plan = Request(sparsity=0.5, correct="divergence"), Probes()
    scores = score(model, tokens, replace(plan, pruner="sparsegpt"), request)
    once = sorted(sizes)
    assert (
        len(once) == 4 * model.config.num_blocks
    )  # q, k, v; o; gate, up; down; 3 sparsities
    targets = targets_for(allocate(scores, request), model.config.linears)
    sizes.clear()
    with Settings(threads=2).open() as resources:
        list(
            pruned_blocks(
                model, targets, PrunerOptions("sparsegpt"), tokens.ids, resources
            )
        )
    assert len(sizes) == 4 * model.config.num_blocks


def test_the_random_control_follows_its_seed(tmp_path: Path) -> None:
    model = read_model(LLAMA)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prune(
            model,
            tmp_path / name,
            targets_at(model, 0.5),
            PrunerOptions("random", seed=seed),
        )
    assert weights(tmp_path / "a") == weights(tmp_path / "b") != weights(tmp_path / "c")


@pytest.mark.parametrize("tokens", ["", "--samples 3", "--text TEXT --seq-len 24"])
@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt", "magnitude"])
def test_one_wish_in_two_spellings_is_one_model(
    tokens: str, pruner: str, tmp_path: Path
) -> None:
    """Also where `score` and `prune` have other default tokens than pruning itself."""
    words = (
        *tokens.replace("TEXT", str(FIXTURES / "text.txt")).split(),
        "--sparsity",
        0.6,
    )
    scored, by = tmp_path / "scores.json", ("--pruner", pruner)
    ran("score", LLAMA, *words, "--pruner", pruner, "-o", scored)
    text = ran("prune", LLAMA, "-o", tmp_path / "a", *words, *by)
    assert "base uniform, correction divergence\n" in text
    drawn = () if pruner == "magnitude" else words[:-2]
    ran("prune", LLAMA, "-o", tmp_path / "b", *drawn, *by, "--allocation", scored)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    one, other = (numbers(tmp_path / x / "pruning.json") for x in "ab")
    assert one["allocation"] == other["allocation"]
    assert one["allocation"]["pruner"] == one["method"] == pruner


@pytest.mark.parametrize(("words", "more", "alone"), cases("pruning", "allocations"))
def test_a_file_of_allocations_prunes_as_its_options_do(
    words: str, more: str, alone: str, tmp_path: Path
) -> None:
    scored = tmp_path / "scores.json"
    (tmp_path / "base.json").write_text("[0.6, 0.7, 0.7, 0.8]")
    first, alone = (
        x.replace("BASE", str(tmp_path / "base.json")) for x in (words, alone)
    )
    ran("score", LLAMA, *SMALL, *first.split(), "-o", scored)
    if more:
        ran(
            "allocate",
            scored,
            *more.split(),
            "-o",
            scored := tmp_path / "allocation.json",
        )
    ran("prune", LLAMA, "-o", tmp_path / "a", *SMALL, "--allocation", scored)
    ran(
        "prune", LLAMA, "-o", tmp_path / "b", *SMALL, *first.split()[:2], *alone.split()
    )
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    record, scores = (
        numbers(tmp_path / "a" / "pruning.json"),
        json.loads(scored.read_text()),
    )
    expected = facts(scores)
    assert record["allocation"] == {x: expected.get(x) for x in record["allocation"]}
    got = [sum(x["pruned"] for x in row["linears"]) for row in record["blocks"]]
    assert got == scores["allocations"][0]["num_pruned"]


def test_an_allocation_knows_its_pruner(tmp_path: Path) -> None:
    scored, out = tmp_path / "scores.json", tmp_path / "out"
    words = (*SMALL, "--sparsity", 0.5, "--perturbation", "pruning")
    ran("score", LLAMA, *words, "--pruner", "sparsegpt", "-o", scored)
    ran("prune", LLAMA, *SMALL, "-o", out, "--allocation", scored)
    assert numbers(out / "pruning.json")["method"] == "sparsegpt"
    words = ("prune", LLAMA, *SMALL, "-o", tmp_path / "other", "--allocation", scored)
    error = refused(*words, "--pruner", "wanda")
    assert "--pruner with" in error
    assert "measured with sparsegpt" in error
    assert "--damping" in refused(*words, "--damping", 0.5)
    error = refused(*words, "--sparsity", 0.5)
    assert "a file of scores with --allocation FILE and without --sparsity" in error


def test_wandas_probes_allocate_for_pruners_of_outer_products(tmp_path: Path) -> None:
    scored = tmp_path / "scores.json"
    ran("score", LLAMA, *SMALL, "--sparsity", 0.5, "-o", scored)
    for by in ("sparsegpt", "admm"):
        words = (*SMALL, "-o", tmp_path / by, "--allocation", scored)
        ran("prune", LLAMA, *words, "--pruner", by)
        record = numbers(tmp_path / by / "pruning.json")
        assert (record["method"], record["allocation"]["pruner"]) == (by, "wanda")
        got = [sum(x["pruned"] for x in row["linears"]) for row in record["blocks"]]
        assert got == json.loads(scored.read_text())["allocations"][0]["num_pruned"]
    words = (*SMALL, "-o", tmp_path / "other", "--allocation", scored)
    assert "measured with wanda" in refused(
        "prune", LLAMA, *words, "--pruner", "magnitude"
    )


def test_the_allocation_of_a_sweep_names_its_eta(tmp_path: Path) -> None:
    words = (
        *SMALL,
        "--perturbation",
        "gaussian",
        "--eta",
        "0.03,0.5",
        "--correct",
        "absorption",
    )
    ran("score", LLAMA, *words, "-o", tmp_path / "scores.json")
    of_scores = ("--allocation", tmp_path / "scores.json")
    made = json.loads(
        ran("prune", LLAMA, *SMALL, "-o", tmp_path / "a", *of_scores, "--json")
    )
    assert (made["allocation"]["correct"], made["allocation"]["eta"]) == (
        "absorption",
        0.03,
    )


def test_blocks_of_which_little_is_left_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[0.5, 0.95, 0.96, 1]")
    words = ("prune", LLAMA, "-o", tmp_path / "out", "--pruner", "magnitude")
    text = ran(*words, "--allocation", tmp_path / "a.json")
    assert "above 0.95 sparsity: block 2 (0.9600), block 3 (1.0000)" in text


def test_the_probes_have_the_damping_of_the_pruner(tmp_path: Path) -> None:
    words = (
        "prune",
        LLAMA,
        *SMALL,
        "--sparsity",
        0.5,
        "--pruner",
        "sparsegpt",
        "--damping",
        0.5,
    )
    record = json.loads(ran(*words, "--json", "-o", tmp_path / "a"))
    assert (record["allocation"]["damping"], record["damping"]) == (0.5, 0.5)


@cache
def scores_of_llama() -> Scores:
    return score(model_of("llama"), drawn(model_of("llama")))


def edited(change: Any, tmp_path: Path) -> Path:
    """A file of allocations for the llama fixture with something changed."""
    content = scores_document(scores_of_llama(), (allocate(scores_of_llama()),))
    change(content)
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(content))
    return path


def v_proj(content: dict[str, Any], change: float) -> None:
    """Change the count of one linear, of 512 weights."""
    content["allocations"][0]["linear_pruned"][1][2] += change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: v_proj(c, 1), "counts sum to"),
        (lambda c: v_proj(c, 513), "more than its linear has"),
        (lambda c: v_proj(c, 0.5), "allocations[0].linear_pruned"),
        (lambda c: c.pop("allocations"), "the document has no allocations"),
        (lambda c: c["allocations"][0].update(base_sparsity=[None] * 4), "or null"),
        (
            lambda c: c["allocations"][0]["linear_sparsity"][0].__setitem__(0, -1),
            "negative",
        ),
        (lambda c: c.update(format=7), "format 7"),
        (lambda c: c["scores"]["linears"].pop(), "scores.sinks has [4] numbers"),
        (lambda c: c["scores"]["linears"][0].update(q_proj=[64, 32]), "another model"),
    ],
)
def test_allocations_that_do_not_fit_are_refused(
    change: Any, says: str, tmp_path: Path
) -> None:
    path, out = edited(change, tmp_path), tmp_path / "out"
    error = refused("prune", LLAMA, "-o", out, "--allocation", path)
    assert "edited.json" in error
    assert says in error
    assert not out.exists()


@pytest.mark.parametrize(("words", "says"), cases("pruning", "refused"))
def test_one_clear_error_and_no_output(words: str, says: str, tmp_path: Path) -> None:
    assert says in refused("prune", LLAMA, "-o", tmp_path / "out", *words.split())
    assert list(tmp_path.iterdir()) == []


def test_a_hessian_that_does_not_factor_names_its_linear(tmp_path: Path) -> None:
    words = ("--nm", "2:4", "--pruner", "sparsegpt", "--samples", 1, "--seq-len", 2)
    said = refused("prune", LLAMA, "-o", tmp_path / "out", *words, "--damping", 0)
    assert (
        "blocks.0.gate_proj: the Hessian is not positive definite" in said
    )  # the largest first
    assert "(default 0.01)" in said
    assert list(tmp_path.iterdir()) == []
    ran("prune", LLAMA, "-o", tmp_path / "out", *words, "--damping", "0.01")


FEW = "--samples 1 --tokens random"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.embed_tokens.weight", f"--nm 2:4 {FEW}"),
        ("model.layers.2.mlp.up_proj.weight", f"--nm 2:4 {FEW}"),
        ("model.layers.2.mlp.up_proj.weight", "--nm 2:4 --pruner magnitude"),
        ("model.layers.1.self_attn.k_proj.weight", "--nm 2:4 --pruner random"),
        ("model.layers.3.input_layernorm.weight", "--nm 2:4 --pruner random"),
        ("lm_head.weight", f"--sparsity 0.5 --pruner magnitude {FEW}"),  # between both
        ("lm_head.weight", "--sparsity 0.5 --pruner magnitude --allocation uniform"),
    ],
)
def test_weights_that_are_not_finite_are_named(
    name: str, words: str, tmp_path: Path
) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name][-1] = np.nan

    model = altered(tmp_path / "model", "llama", spoil)
    assert name in refused("prune", model, "-o", tmp_path / "out", *words.split())
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert f"NaN or Inf  {name}" in ran("inspect", model)


CASES_OF_MIXERS = (  # other mixers of tokens than attention alone
    "lfm2",
    "lfm2_moe",
    "lfm3",
    "afmoe",
    "qwen3_5",
    "qwen3_next",
    "deepseek_v3",
    "minicpm3",
    "granite_hybrid",
    "bamba",
    "nemotron_h",
    "falcon_h1",
    "olmo_hybrid",
    "gemma4",
    "gemma4_experts",
    "gemma4_small",
)


@pytest.mark.parametrize("case", layouts(CASES_OF_MIXERS))
@pytest.mark.parametrize("base", bases())
def test_every_base_has_an_allocation(case: str, base: str) -> None:
    model, options = model_of(case), {"beta": 0.1} if base == "atp" else {}
    scores = score(model, drawn(model, 2, 9), request=Request(base, options, 0.5))
    assert abs(allocate(scores).total_pruned - scores.linear_sizes.sum() / 2) <= 0.5


def test_the_pruned_model_is_a_model(tmp_path: Path) -> None:
    words = (*SMALL, "--sparsity", 0.5, "--allocation", "uniform")
    ran("prune", LLAMA, "-o", tmp_path / "a", *words)
    assert forward(read_model(tmp_path / "a"), [[1, 5, 7]]).logits.shape == (1, 3, 264)
    ran("prune", tmp_path / "a", "-o", tmp_path / "b", *words)  # nothing is left to do
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    first, second = (
        json.loads((tmp_path / n / "pruning.json").read_text()) for n in "ab"
    )
    assert first["before"] is None
    assert second["before"] == first


def test_from_python(tmp_path: Path) -> None:
    model = read_model(TINY)
    asked, tokens = targets_at(model, 0.3), id_tokens(TINY / "tokens.npy")
    found = prune(model, tmp_path / "out", asked, tokens=tokens, dtype=np.float64)
    assert found.total_pruned == found.total_zeros == asked.linear_pruned.sum()
    refusal_of(
        prune, model, tmp_path / "other", asked, says="without calibration tokens"
    )
    refusal_of(
        prune,
        model,
        tmp_path / "other",
        asked,
        dtype=np.float16,
        says="float32 or float64",
    )
    too_many = replace(asked, linear_pruned=asked.linear_pruned * 4)
    for other in (targets_at(model_of("gpt2"), 0.3), too_many):
        refusal_of(prune, model, tmp_path / "other", other, says="another model")
    refusal_of(PrunerOptions, "nonsense", says="nonsense")


@pytest.mark.parametrize("name", ["mine.json", "linears.json"])
def test_a_file_of_ones_own_sets_the_budget(name: str, tmp_path: Path) -> None:
    linears = read_model(LLAMA).config.linears
    share = [[0.41, 0.6, 0.83, 0.79][i] for i in range(4)]
    content: Any = share
    if name == "linears.json":
        content = [
            [x + 0.01 * j for j in range(len(block))]
            for x, block in zip(share, linears, strict=True)
        ]
    text = json.dumps(content)
    (tmp_path / name).write_text(text)
    ran(
        "prune",
        LLAMA,
        "-o",
        tmp_path / "out",
        "--allocation",
        tmp_path / name,
        "--pruner",
        "magnitude",
    )
    record = json.loads((tmp_path / "out" / "pruning.json").read_text())
    for i, row in enumerate(record["blocks"]):
        for j, linear in enumerate(row["linears"]):
            wanted = share[i] + (0.01 * j if name == "linears.json" else 0)
            assert linear["sparsity"] == pytest.approx(
                wanted, abs=1e-12
            )  # nothing is shifted
            assert abs(linear["pruned"] - wanted * linear["weights"]) <= 2
    (tmp_path / "bad.json").write_text("[0.5, 0.6]")
    error = refused(
        "prune", LLAMA, "-o", tmp_path / "no", "--allocation", tmp_path / "bad.json"
    )
    assert "2 rows" in error
