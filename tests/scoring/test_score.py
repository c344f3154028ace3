"""What `score` refuses, reports as progress and leaves alone."""

import json
import re
from collections import Counter
from dataclasses import replace
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import altered
from gates import model_of
from refusals import refusal_of
from scipy.special import log_softmax

from refimpl import (
    Noise,
    Probes,
    Request,
    allocate,
    forward,
    read_model,
    recommended,
    score,
)
from refimpl.bases.lsa import lsa_error
from refimpl.loading.samples import Tokens, random_tokens
from refimpl.model.ops import Array
from refimpl.model.stream import (
    Stream,
    add_sums,
    input_of,
    sum_of_outer_products,
    sum_of_squares,
)
from refimpl.pruners.decision import PrunerOptions, decision
from refimpl.running.threads import Workers
from refimpl.scoring.base_signals import signals_of
from refimpl.scoring.measurements import addresses
from refimpl.scoring.state_group import PrunedBlocks, probe_counts

LLAMA, TOKENS = model_of("llama"), random_tokens(200, 2, 9)
STATE = 9 * LLAMA.config.hidden_size * 4  # bytes


def test_too_little_memory_says_what_would_do() -> None:
    enough = 6 * STATE  # a stack of four states, and the clean one twice
    refusal_of(score, LLAMA, TOKENS, memory=enough - 1, remedy=f"--memory {enough}")
    assert not np.isnan(score(LLAMA, TOKENS, memory=enough).sweep[0].coefficient[0])


def test_scoring_changes_neither_ids_nor_request() -> None:
    request, before = Request("owl", {"m": 3.0}, correct=None), TOKENS.ids.copy()
    scores = score(LLAMA, TOKENS, request=request)
    np.testing.assert_array_equal(TOKENS.ids, before)
    assert request == Request("owl", {"m": 3.0}, correct=None)
    assert (scores.tokens.samples, scores.tokens.seq_len) == before.shape
    assert scores.tokens.sha256 == TOKENS.sha256


@pytest.mark.parametrize("plan", [Noise(), Probes()])
def test_signals_that_no_base_needs_may_be_left_out(plan: Noise | Probes) -> None:
    whole = score(LLAMA, TOKENS, plan)
    without = score(LLAMA, TOKENS, plan, bases=())
    assert whole.signals.keys() == {"owl", "dlp"}
    assert all(np.isfinite(signal.main).all() for signal in whole.signals.values())
    assert without.signals == {}
    for name in ("drift", "coefficient"):
        ours, theirs = (getattr(s.sweep[0], name) for s in (without, whole))
        np.testing.assert_array_equal(ours, theirs)
    request = Request("owl", correct=None)
    needed = score(LLAMA, TOKENS, plan, request, bases=()).signals
    np.testing.assert_array_equal(needed["owl"].main, whole.signals["owl"].main)
    assert needed.keys() == {"owl"}


def test_refused() -> None:
    refusal_of(
        score, LLAMA, TOKENS, Noise(), Request(), remedy="--perturbation pruning"
    )
    refusal_of(score, LLAMA, TOKENS, dtype=np.float16, says="float32 or float64")
    refusal_of(
        score, LLAMA, Tokens(np.array([[264]]), "mine", "ids"), says="vocabulary"
    )
    refusal_of(
        score,
        LLAMA,
        Tokens(np.zeros((1, 65), np.int64), "mine", "ids"),
        says="65 tokens",
    )


@pytest.mark.parametrize(("dtype", "huge"), [("float32", 1e30), ("float64", 1e200)])
def test_activations_beyond_the_dtype_are_an_error_not_a_warning(
    dtype: str, huge: float, tmp_path: Path
) -> None:
    def change(arrays: dict[str, Array]) -> None:
        for name, weight in arrays.items():
            arrays[name] = weight.astype(np.float64) * (
                huge if "down_proj" in name else 1
            )

    model = read_model(altered(tmp_path / "m", "llama", change))
    for run in (
        lambda: forward(model, [[1, 2, 3]], dtype=dtype),
        lambda: score(model, random_tokens(264, 2, 4), dtype=dtype),
    ):
        with np.errstate(all="warn"):
            error = refusal_of(run, says=f"beyond the range of {dtype}")
        assert dtype == "float64" or "--dtype float64" in error.remedy


@pytest.mark.parametrize("damaged", ["model.embed_tokens.weight", "lm_head.weight"])
def test_nan_outside_the_blocks_is_refused_by_name(
    damaged: str, tmp_path: Path
) -> None:
    def change(arrays: dict[str, Array]) -> None:
        arrays[damaged] = arrays[damaged].copy()
        arrays[damaged][-1, 0] = np.nan  # of an id that is not used

    model = read_model(altered(tmp_path / "m", "llama", change))
    for call, ids in ((forward, [[1, 2, 3]]), (score, random_tokens(200, 2, 4))):
        refusal_of(call, model, ids, says=f"{damaged} holds 1 NaN")  # type: ignore[arg-type]


@pytest.mark.parametrize("memory", [16 * STATE, None])
@pytest.mark.parametrize(
    ("plan", "request_"),
    [
        (Noise(), Request(correct=None)),
        (Noise(eta=(0.1, 1.0), draws=2), Request("alphapruning", correct=None)),
        (Probes(), Request(correct=None)),
        (Probes(), Request("alphapruning", correct="divergence")),
    ],
)
@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_progress_never_goes_back_and_ends_at_the_total(
    case: str, plan: Noise | Probes, request_: Request, memory: int | None
) -> None:
    steps: list[tuple[float, float]] = []
    options: Any = {"memory": memory, "progress": lambda *step: steps.append(step)}
    score(model_of(case), random_tokens(100, 2, 9), plan, request_, **options)
    done, totals = zip(*steps, strict=True)
    assert len({round(x, 6) for x in totals}) == 1
    assert all(d <= total * (1 + 1e-12) for d, total in steps)
    assert list(done) == sorted(done)
    assert done[0] > 0
    assert done[-1] == pytest.approx(totals[-1], rel=1e-12)


def test_lsa_has_its_progress_and_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.scoring.experiment._ROWS", 18)  # two states in a stack
    steps, need = list[tuple[float, float]](), 4 * STATE  # of both sequences, twice
    plan, request = Probes(), Request("lsa", {"block": 8}, correct=None)
    options: Any = {"memory": need, "progress": lambda *step: steps.append(step)}
    found = score(LLAMA, TOKENS, plan, request, **options)
    assert found.pruned_at is not None
    assert found.signals["lsa"].main.min() > 0
    assert steps == sorted(steps, key=lambda step: step[0])
    assert steps[-1][0] == pytest.approx(steps[-1][1], rel=1e-12)
    assert len({round(total, 6) for _, total in steps}) == 1
    assert (
        len(steps) >= 2 * 4 * 3
    )  # passes of LSA, of the statistics, of the experiment
    refusal_of(
        score, LLAMA, TOKENS, plan, request, memory=need - 1, remedy=f"--memory {need}"
    )


def test_an_expert_without_tokens_has_no_error() -> None:
    model, ids = model_of("mixtral"), np.array([[7]])  # seen by two of five experts
    found = signals_of(
        model, Request("lsa", {"block": 8}), Tokens(ids, "one token", "ids")
    )
    stream, idle = Stream(model, {0: ids[0]}), 0
    for i, linears in enumerate(model.config.linears):
        weights = model.block(i, np.float32)
        h, sums = stream.through_with_sums(
            stream.states[0], weights, sum_of_outer_products
        )
        stream.advance({0: h})
        read = [
            name
            for name in linears
            if input_of(name) in sums and sums[input_of(name)].any()
        ]
        idle += len(linears) - len(read)
        errors = [
            2 * lsa_error(weights[f"{x}.weight"], sums[input_of(x)], 8) for x in read
        ]
        assert found["lsa"].main[i] == pytest.approx(
            sum(errors) / len(linears), rel=1e-6
        )
    assert idle == 3 * 3 * model.config.num_blocks


def test_probes_are_what_scores_at_their_counts_say(tmp_path: Path) -> None:
    """Each of the three is the divergence at a base of its own, pruned alone."""
    request = Request(sparsity=0.6, correct="divergence")
    probed = score(LLAMA, TOKENS, request=request, dtype=np.float64)
    assert probed.plan == Probes(delta=0.1, precision=0.025)
    assert probed.probes is not None
    assert probed.pruned_at is not None
    sizes = LLAMA.config.linear_sizes
    counts = probe_counts(probed.pruned_at.linear_pruned, sizes, 0.1)[[1, 0, 2]]
    mean = probed.probes.divergences.mean(axis=0)
    for i, shift in enumerate((-0.1, 0.0, 0.1)):
        np.testing.assert_allclose(
            probed.probes.sparsity[i], 0.6 + shift, rtol=0, atol=1e-3
        )
        path = tmp_path / f"{i}.json"
        path.write_text(json.dumps((counts[i] / sizes).tolist()))
        total = float(counts[i].sum() / sizes.sum())
        request = Request(str(path), {}, total, "divergence", 0.1)
        alone = score(LLAMA, TOKENS, Probes(), request, dtype=np.float64)
        assert alone.pruned_at is not None
        np.testing.assert_array_equal(alone.pruned_at.linear_pruned, counts[i])
        assert alone.probes is None
        found, expected = mean[i], alone.sweep[0].divergence
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(
        probed.sweep[0].divergence, probed.probes.divergences.mean(axis=0)[1]
    )


def test_probes_stay_half_the_way_from_nothing_and_everything() -> None:
    counts = probe_counts(
        np.array([[4, 50, 98, 0]]), np.array([[100, 100, 100, 0]]), 0.1
    )
    assert counts.tolist() == [[[4, 50, 98, 0]], [[2, 40, 88, 0]], [[14, 60, 99, 0]]]


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt"])
def test_a_probed_sample_is_what_it_is_among_all(pruner: Any) -> None:
    """The others only help to decide which weights go."""
    request, found = Request(correct="divergence"), list[Any]()
    for samples in (1, 2):
        plan = Probes(pruner=pruner, samples=samples)
        found.append(score(LLAMA, TOKENS, plan, request).probes)
    first, both = (x.divergences for x in found)
    assert first.shape == (1, 3, 4)
    np.testing.assert_array_equal(first, both[:1])
    assert not np.array_equal(both[0], both[1])


def test_no_more_samples_are_perturbed_than_the_precision_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.scoring.experiment.STATES_AT_RISK", 1)

    def scored(precision: float, samples: int = 5, **options: Any) -> tuple[Any, float]:
        plan, tokens = (
            Probes(precision=precision, samples=samples),
            random_tokens(200, 5, 9),
        )
        found = score(LLAMA, tokens, plan, bases=(), dtype=np.float64, **options)
        assert found.probes is not None
        return found.probes.divergences, getattr(
            allocate(found).errors, "precision", nan
        )

    exact = [scored(0, samples) for samples in (3, 4, 5)]
    for precision in (1.0, *(error for _, error in exact)):
        enough = next(each for each, error in exact if error <= precision)
        np.testing.assert_array_equal(scored(precision)[0], enough)
    kept = {"finished": tmp_path / "part"}
    with pytest.raises(ZeroDivisionError):  # the first sample is finished
        scored(
            exact[1][1], **kept, progress=lambda done, total: 1 / (done < 0.4 * total)
        )
    np.testing.assert_array_equal(
        scored(exact[1][1], **kept)[0], scored(exact[1][1])[0]
    )


def test_growth_is_probed_on_four_blocks() -> None:
    found = Counter(a.block for a in addresses(1, 30, Probes(delta=0.1)))
    assert found == {i: 3 if i in (3, 11, 18, 26) else 1 for i in range(30)}


@pytest.mark.parametrize("pruner", ["wanda", "sparsegpt", "magnitude"])
def test_blocks_are_probed_alone_with_the_pruner_asked_for(pruner: Any) -> None:
    """Against a forward of our own with one block pruned, its statistics those of the dense."""
    ids, config = TOKENS.ids, LLAMA.config
    plan = Probes(pruner=pruner, damping=0.2)
    request = Request(sparsity=0.6, correct="divergence")
    found = score(LLAMA, TOKENS, plan, request, dtype=np.float64)
    assert found.probes is not None
    assert found.pruned_at is not None
    counts = probe_counts(found.pruned_at.linear_pruned, config.linear_sizes, 0.1)[
        [1, 0, 2]
    ]
    dense = log_softmax(forward(LLAMA, ids, dtype=np.float64).logits, axis=-1)
    sums = sum_of_outer_products if pruner == "sparsegpt" else sum_of_squares
    for block, i in ((0, 0), (2, 2), (3, 1)):
        total: dict[str, Any] = {}
        stream = Stream(LLAMA, dict(enumerate(ids)), np.float64)
        for k in range(block + 1):
            passed = [
                stream.through_with_sums(h, LLAMA.block(k, np.float64), sums)
                for h in stream.states.values()
            ]
            stream.advance({n: h for n, (h, _) in enumerate(passed)})
        for _, each in passed:
            add_sums(total, each)
        weights = dict[str, Any](LLAMA.weights)
        for name, count in zip(
            config.linears[block], counts[i, block].tolist(), strict=True
        ):
            weight = LLAMA.block(block, np.float64)[f"{name}.weight"]
            how = PrunerOptions(pruner, 0.2)
            keep, new = decision(weight, total[input_of(name)], len(ids), count, how)
            thin = np.where(keep, weight if new is None else new, 0)
            weights[f"blocks.{block}.{name}.weight"] = SimpleNamespace(read=thin.astype)
        model = replace(LLAMA, weights=weights)
        pruned = log_softmax(forward(model, ids, dtype=np.float64).logits, axis=-1)
        kl = (np.exp(dense) * (dense - pruned)).sum(axis=-1).mean()
        assert found.probes.divergences.mean(axis=0)[i, block] == pytest.approx(
            kl, rel=1e-9
        )
    made = allocate(found, request)
    assert made.total_pruned == round(0.6 * made.total_weights)


def test_no_block_is_pruned_further_than_its_fit_reaches() -> None:
    request = Request(sparsity=0.6, correct="divergence")
    found = score(LLAMA, TOKENS, Probes(delta=0.05), request, dtype=np.float64)
    assert found.probes is not None
    made = allocate(found, request)
    _, at, above = found.probes.sparsity
    final, reach = made.corrected_sparsity, at + 2 * (above - at)
    assert (final <= reach + 1e-12).all()
    assert np.isclose(final, reach, rtol=0, atol=1e-12).any()
    assert made.total_pruned == round(0.6 * made.total_weights)
    lower = allocate(found, replace(request, hi=0.65))
    assert lower.linear_sparsity.max() <= 0.65 + 1e-12


def test_a_probe_of_a_block_takes_bits_beside_its_weights() -> None:
    dense, counts = LLAMA.block(0, np.float32), LLAMA.config.linear_sizes[None] // 2
    pruned = PrunedBlocks(counts, PrunerOptions("magnitude"))
    with Workers(1) as workers:
        found = pruned.pruned(0, [0], Stream(LLAMA, {}, np.float32), dense, workers)[0]
    linears = sum(dense[f"{name}.weight"].nbytes for name in LLAMA.config.linears[0])
    assert found.nbytes == dense.nbytes - linears
    zeros = [
        np.count_nonzero(found[f"{name}.weight"] == 0)
        for name in LLAMA.config.linears[0]
    ]
    assert zeros == counts[0, 0].tolist()


@pytest.mark.parametrize(
    ("pruner", "probe"), [("magnitude", "magnitude"), ("admm", "wanda")]
)
def test_the_recommended_allocation_is_that_of_the_default_request(
    pruner: str, probe: str
) -> None:
    scores, allocation = recommended(LLAMA, TOKENS, 0.5, pruner)
    theirs = score(LLAMA, TOKENS, Probes(pruner=probe), Request(sparsity=0.5), bases=())
    np.testing.assert_array_equal(
        allocation.linear_pruned, allocate(theirs).linear_pruned
    )
    assert scores.plan == theirs.plan


def test_progress_true_shows_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    score(LLAMA, TOKENS, progress=True)
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert re.fullmatch(r" *\d+% done", lines[0])
    assert lines[-1].startswith("100% done")
