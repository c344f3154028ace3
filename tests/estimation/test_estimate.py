"""What scoring will take, told beforehand: counted against real runs; and what fits into a time."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import FIXTURES
from gates import model_of
from hypothesis import given
from hypothesis import strategies as st
from program import run

from refimpl import Perturbation, RefimplError, Request, score
from refimpl.estimation import estimate as job
from refimpl.estimation.estimate import Estimate, Estimator, estimate, estimator
from refimpl.estimation.measured_speed import Pace, pace
from refimpl.estimation.time_budget import fitting
from refimpl.estimation.workload import Work, arithmetic, attended, work
from refimpl.model.attention import causal_bias
from refimpl.model.config import BlockKind
from refimpl.model.model import Model
from refimpl.running.executors import Pool
from refimpl.show.estimate import duration
from refimpl.tokens import random_tokens

LLAMA = FIXTURES / "llama"
CASES = ("llama", "mistral", "gpt2", "gemma3")
VOCABULARIES = {model_of(case).config.vocab_size for case in CASES}
FAST = Pace(1.0, 0.1, 2.0, 0.5, 3.0, 0.2, 0.3, 0.4, 2, 0.0)
RUNS = {
    "gaussian": (Perturbation(), Request()),
    "etas": (Perturbation(eta=(0.01, 0.1, 0.5)), Request("owl")),
    "draws": (Perturbation(draws=3, sink="exclude"), Request()),
    "subset": (Perturbation(eta=(0.01, 0.1), draws=2, subset=2), Request("alphapruning")),
    "pruning": (Perturbation("pruning"), Request("owl")),
    "pruning a subset": (Perturbation("pruning", subset=2), Request()),
    "divergence": (Perturbation("pruning"), Request(correct="divergence")),
}


class Counting(Model):
    """A model that notes how often blocks are read."""

    def block(
        self, index: int, dtype: npt.DTypeLike, each: Any = map
    ) -> dict[str, npt.NDArray[Any]]:
        with one_at_a_time:
            seen["loads"] += 1
        return super().block(index, dtype, each)


seen: Counter[str] = Counter()
one_at_a_time = Lock()


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count what a run really does: block passes, products of matrices, blocks read."""

    def counted(path: str, note: Callable[..., tuple[str, int]]) -> None:
        module, _, name = path.rpartition(".")
        function = getattr(__import__(module, fromlist=[name]), name)

        def noting(*args: Any, **options: Any) -> Any:
            what, how_much = note(*args)
            with one_at_a_time:
                seen[what] += how_much
            return function(*args, **options)

        monkeypatch.setattr(path, noting)

    def product(x: Any, weight: Any, bias: Any = None) -> tuple[str, int]:
        rows, (out, width) = x.size // x.shape[-1], weight.shape
        return ("head" if out in VOCABULARIES else "linears"), 2 * rows * out * width

    def attention(q: Any, k: Any, v: Any, *rest: Any) -> tuple[str, int]:
        pairs = q[..., 0].size * k.shape[-2]
        return "attention", 2 * pairs * (q.shape[-1] + v.shape[-1])

    seen.clear()
    for module in ("model.stream", "model.statistics"):
        counted(f"refimpl.{module}.block", lambda *args: ("passes", 1))
    counted("refimpl.model.forward.linear", product)
    counted("refimpl.model.attention.attend", attention)
    counted("refimpl.scoring.journey.head", lambda *args: ("heads", 1))


def counting_model(case: str) -> Counting:
    plain = model_of(case)
    return Counting(**{f.name: getattr(plain, f.name) for f in fields(plain)})


# Counts


@pytest.mark.parametrize("options", [{}, {"memory": "20K"}, {"threads": 3, "memory": "40K"}])
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("case", CASES)
def test_what_is_told_is_what_is_done(
    case: str, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("model.kernels", "estimation.workload"):  # so that there are many tiles
        monkeypatch.setattr(f"refimpl.{module}.QUERIES", 8)
    monkeypatch.setattr(job, "pace", lambda *args: FAST)
    plan, request = RUNS[name]
    model = counting_model(case)
    if model.config.num_blocks > 6:  # three sequences are not enough
        plan = replace(plan, subset=plan.subset and 4)
    tokens = random_tokens(100, 3, 21)
    told = estimate(model, tokens, plan, request, **options)
    assert not seen
    score(model, tokens, plan, request, **options)
    assert told.work.passes == seen["passes"]
    signals = model.config.num_blocks * (2 if plan.kind == "pruning" else 1)
    assert told.work.loads == seen["loads"] - signals
    for kind in ("linears", "attention"):
        assert getattr(told.arithmetic, kind) == seen[kind], kind
    assert told.arithmetic.head == seen["head"]
    assert told.work.heads == seen["heads"]


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_kept_changes_how_states_travel(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.scoring.experiment.KEPT", 2)
    monkeypatch.setattr("refimpl.scoring.dense_statistics.KEPT", 1)
    monkeypatch.setattr(job, "pace", lambda *args: FAST)
    model, tokens, plan = (
        counting_model("llama"),
        random_tokens(264, 3, 12),
        Perturbation("pruning"),
    )
    told = estimate(model, tokens, plan, threads=2, kept=kept)
    score(model, tokens, plan, threads=2, part=tmp_path / "part" if kept else None)
    assert told.work.passes == seen["passes"]
    assert told.work.loads == seen["loads"] - 2 * 4


@pytest.mark.parametrize("threads", [1, 2])
def test_work_elsewhere_is_counted_too(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from concurrent.futures import ThreadPoolExecutor

    monkeypatch.setattr(job, "pace", lambda *args: FAST)
    monkeypatch.setattr("refimpl.running.work_units.ModelFiles.open", lambda files: model)
    model, tokens, plan = (
        counting_model("llama"),
        random_tokens(264, 3, 12),
        Perturbation("pruning"),
    )
    with ThreadPoolExecutor(threads) as pool:
        told = estimate(model, tokens, plan, executor=pool)
        score(model, tokens, plan, executor=pool)
    assert (told.elsewhere, told.threads) == (True, threads)
    assert told.work.passes == seen["passes"]
    assert told.work.loads == seen["loads"] - 2 * 4


def test_work_in_processes_is_what_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "pace", lambda *args: FAST)
    model, plan = model_of("llama"), Perturbation("pruning")
    tokens, steps = random_tokens(264, 1, 12), list[tuple[float, float]]()
    options: dict[str, Any] = {"executor": "processes", "threads": 2}
    told = estimate(model, tokens, plan, **options)
    here = estimate(model, tokens, plan, threads=2)
    assert (told.elsewhere, told.threads) == (True, 2)
    assert told.work.clean.sum() > here.work.clean.sum()  # each piece repeats the clean state
    assert told.work.pushed.tolist() == here.work.pushed.tolist()
    score(model, tokens, plan, **options, progress=lambda *step: steps.append(step))
    assert steps[-1] == (told.work.passes, told.work.passes)


@given(st.integers(1, 300), st.none() | st.integers(1, 320))
def test_attention_looks_at_the_keys_that_its_queries_see(length: int, window: int | None) -> None:
    bias = causal_bias(np.arange(length), window, np.float32)
    pairs = 0
    for start in range(0, length, 128):
        seen_keys = np.flatnonzero((bias[start : start + 128] == 0).any(axis=0))
        pairs += len(bias[start : start + 128]) * (seen_keys[-1] + 1 - seen_keys[0])
    assert attended(BlockKind(window, None), length) == pairs


def test_the_formula_of_the_documentation() -> None:
    config, sequences, length = model_of("llama").config, 5, 32
    blocks, room = config.num_blocks, 1 << 30
    for subset in (None, 2):
        plan = Perturbation(eta=(0.1, 0.2), draws=4, subset=subset)
        count = work(config, sequences, length, plan, False, 1, room)
        each = (blocks if subset is None else subset) * (blocks - 1) / 2
        assert count.passes == sequences * (blocks + 2 * 4 * each)
    flop = arithmetic(config, length, count, spectra=True, signals=1)
    assert flop.linears == 2 * length * config.block_size * count.passes
    width = config.num_attention_heads * config.head_dim
    assert flop.attention == 4 * width * length**2 * count.passes  # one tile
    assert flop.total == flop.linears + flop.attention + flop.spectra + flop.signals
    square = replace(config, hidden_size=6, intermediate_size=6, num_attention_heads=1)
    square = replace(square, num_key_value_heads=1, head_dim=6)
    spectra = arithmetic(square, length, count, spectra=True, signals=0).spectra
    assert spectra == blocks * 7 * (4 * 6**3 - 4 * 6**3 // 3)


def test_memory_holds_what_the_experiment_holds() -> None:
    model, tokens = model_of("llama"), random_tokens(264, 3, 16)
    state = 16 * 32 * 4
    for room, held in ((3, 3), (10, 10), (10**6, 12 + 6)):
        found = estimate(model, tokens, memory=room * state, threads=1)
        assert found.memory.states == held * state <= max(found.memory.allowed, 0)
    assert found.memory.blocks == 0  # float32, as stored
    double = estimate(model, tokens, dtype=np.float64, threads=1).memory
    assert (double.states, double.blocks) == (2 * held * state, 2 * 7296 * 8)
    assert found.memory.pages == double.pages == 7296 * 4


# Time


def test_time_is_counts_times_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "pace", lambda *args: FAST)
    model, tokens = model_of("llama"), random_tokens(264, 3, 12)
    plan, request = Perturbation("pruning"), Request("alphapruning", correct="divergence")
    found = estimate(model, tokens, plan, request, threads=2)
    # Dense: 3 sequences, 2 turns, in 4 blocks. Then 3 clean and 3, 6, 9, 12 pushed states.
    turns = 2 * 4 + 3 + 5 + 6 + 8
    assert found.work.turns == turns
    assert found.seconds.check == 1
    assert found.seconds.experiment == pytest.approx(turns * 2 + 8 * 0.1 + 12 * 0.5 / 2)
    assert found.seconds.head == pytest.approx(3 * (1 + 2) * 3)
    assert found.seconds.thinning == pytest.approx(4 * 0.2)
    assert found.seconds.spectra == pytest.approx(4 * 0.4 / 2)
    assert found.seconds.signals == pytest.approx(2 * 4 * 0.3)
    parts = [getattr(found.seconds, field.name) for field in fields(found.seconds)]
    assert found.seconds.total == pytest.approx(sum(parts))


def test_workers_elsewhere_share_the_time() -> None:
    config, plan = model_of("llama").config, Perturbation()
    whole = work(config, 4, 12, plan, False, 1, 1 << 20)
    there = Pool(workers=4)
    assert job._seconds(config, whole, FAST, there, 1, 1) == job._seconds(
        config, whole, FAST, Pool(), 1, 1
    )
    shared = job._seconds(config, whole, FAST, replace(there, executor=object()), 1, 1)  # type: ignore[arg-type]
    alone = job._seconds(config, whole, FAST, Pool(), 1, 1)
    assert shared.experiment == pytest.approx(alone.experiment / 4)
    assert shared.signals == pytest.approx(alone.signals / 4)


@pytest.mark.parametrize("name", RUNS)
def test_the_pace_is_measured_on_a_few_blocks(name: str) -> None:
    from refimpl.running.threads import Workers

    plan, request = RUNS[name]
    with Workers(2) as workers:
        found = pace(model_of("llama"), np.arange(12), plan, request, workers, 1 << 20)
    pruning, alphas = plan.kind == "pruning", request.base == "alphapruning"
    assert found.turn > 0
    assert found.load > 0
    assert found.signals > 0
    assert (found.thin > 0) == pruning
    assert (found.spectra > 0) == alphas
    assert (found.head > 0) <= (request.correct == "divergence")
    assert found.measuring < 60
    assert found.blocks == 2


def test_damaged_weights_are_seen_before_the_time_is_told(tmp_path: Path) -> None:
    with pytest.raises(RefimplError, match="does not hold one experiment"):
        estimate(model_of("llama"), random_tokens(264, 2, 8), memory=100)
    with pytest.raises(RefimplError, match="1 to 4 blocks"):
        estimate(model_of("llama"), random_tokens(264, 2, 8), Perturbation(subset=5))
    assert not seen


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "0.012 s"), (9.94, "9.9 s"), (100.4, "100 s"), (600, "10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# A time to fit into


@pytest.fixture
def expected(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Estimator]:
    """Estimators of a machine with one thread that makes a pass a second, and nothing else."""
    second = Pace(0, 0, 1, 0, 0, 0, 0, 0, 2, 0)
    monkeypatch.setattr(job, "pace", lambda *args: second)

    def made(plan: Perturbation, samples: int = 8) -> Estimator:
        tokens = random_tokens(264, samples, 8)
        return estimator(model_of("llama"), tokens, plan, threads=1)

    return made


def chosen(found: Estimate) -> tuple[int, int, int | None]:
    return found.tokens.samples, found.plan.draws, found.plan.subset


# One sample of this model: 4 passes, and 6 for a draw.
@pytest.mark.parametrize(
    ("passes", "choice"),
    [
        (10**6, (8, 3, None)),
        (8 * (4 + 18), (8, 3, None)),
        (8 * (4 + 18) - 1, (8, 2, None)),
        (8 * (4 + 12) - 1, (8, 1, None)),
        (8 * 10 - 1, (7, 1, None)),
        (3 * 10 - 1, (2, 1, None)),
        (2 * 10 - 1, (2, 1, 3)),
        (8 + 6, (2, 1, 2)),
    ],
)
def test_draws_go_first_then_samples_then_blocks(
    passes: int, choice: tuple[int, int, int | None], expected: Callable[..., Estimator]
) -> None:
    plan = Perturbation(draws=3)
    found = fitting(expected(plan), 8, plan, passes / 60)
    assert chosen(found) == choice
    assert found.seconds.total <= passes


def test_a_time_that_is_too_short(expected: Callable[..., Estimator]) -> None:
    plan = Perturbation(draws=3)
    with pytest.raises(RefimplError, match=r"at least 0\.24 minutes"):  # 14 s
        fitting(expected(plan), 8, plan, 13 / 60)
    assert chosen(fitting(expected(plan), 8, plan, 0.24)) == (2, 1, 2)
    for minutes in (0, -1, np.nan, np.inf):
        with pytest.raises(RefimplError, match="more than 0"):
            fitting(expected(plan), 8, plan, minutes)


def test_what_was_asked_for_is_a_bound(expected: Callable[..., Estimator]) -> None:
    assert chosen(fitting(expected(Perturbation(), 1), 1, Perturbation(), 9)) == (1, 1, None)
    with pytest.raises(RefimplError, match=r"at least 0\.17 minutes"):  # all blocks of one sample
        fitting(expected(Perturbation(), 1), 1, Perturbation(), 9 / 60)
    plan = Perturbation(subset=3)
    assert chosen(fitting(expected(plan), 8, plan, 9)) == (8, 1, 3)
    few = Perturbation(draws=2, subset=1)  # which covers 4 blocks only with two samples and draws
    assert chosen(fitting(expected(few, 2), 2, few, 9)) == (2, 2, 1)


# The command

FEW = ("--samples", 4, "--seq-len", 12, "--threads", 1)


def test_the_command_tells_and_stops(tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    result = run("score", LLAMA, *FEW, "--estimate", "-o", out)
    assert (result.code, result.err) == (0, "")
    words = " ".join(result.out.split())
    assert "40 block passes, 16 of clean states, 24 of perturbed ones" in words
    assert "the time is an estimate from the first 2 blocks on 12 tokens" in words
    assert not list(tmp_path.iterdir())
    assert max(map(len, result.out.splitlines())) <= 100


def test_as_json() -> None:
    words = ("--perturbation", "pruning", "--correct", "divergence", "--base", "alphapruning")
    result = run("score", LLAMA, *FEW, *words, "--estimate", "--json")
    assert (result.code, result.err) == (0, "")
    told = json.loads(result.out)
    assert told["passes"] == {"dense": 16, "clean": 16, "pushed": 40, "total": 72}
    assert told["heads"] == 4 * 5
    assert all(told["flop"].values())
    for name in ("flop", "seconds"):
        parts = told[name]
        assert parts.pop("total") == pytest.approx(sum(parts.values()))
    assert (told["budget_minutes"], told["subset"]) == (None, None)


@pytest.mark.parametrize("words", [("--estimate",), ("--budget", 5)])
def test_what_does_not_go_with_it(words: tuple[object, ...], tmp_path: Path) -> None:
    for more, why in (
        (("--runtime", "onnxruntime"), "--runtime with"),
        (("-o", tmp_path / "scores.json", "--resume"), "--resume with"),
    ):
        result = run("score", LLAMA, *FEW, *words, *more)
        assert (result.code, result.out) == (2, "")
        assert f"{why} {words[0]}" in result.err
    assert not list(tmp_path.iterdir())


def test_a_budget_is_the_run_with_what_it_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "pace", lambda *args: Pace(0, 0, 1, 0, 0, 0, 0, 0, 2, 0))
    result = run("score", LLAMA, *FEW, "--draws", 2, "--budget", 19 / 60, "--json")
    assert result.code == 0
    assert result.err.startswith("budget of 0.316667 min: --samples 2 --draws 1 --subset 3, about")
    found = json.loads(result.out)
    assert found.pop("budget_minutes") == 19 / 60
    words = ("--samples", 2, "--seq-len", 12, "--threads", 1, "--draws", 1, "--subset", 3)
    same = json.loads(run("score", LLAMA, *words, "--json").out)
    assert same.pop("budget_minutes") is None
    del found["run"], same["run"]
    assert found == same
    shown = run("score", LLAMA, *FEW, "--budget", 19 / 60)
    assert "0.316667 min, 2 samples chosen, 1 draw, 3 of 4 blocks" in " ".join(shown.out.split())
    told = run("score", LLAMA, *FEW, "--budget", 19 / 60, "--estimate", "--json")
    assert (told.code, told.err) == (0, "")
    assert [json.loads(told.out)[key] for key in ("samples", "draws", "subset")] == [2, 1, 3]


def test_a_budget_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "pace", lambda *args: Pace(0, 0, 1, 0, 0, 0, 0, 0, 2, 0))
    words = ("score", LLAMA, "--seq-len", 12, "--samples", 4, "--draws", 2)
    there = ("--executor", "processes", "--threads", 2)
    told = run(*words, *there, "--budget", 17 / 60, "--estimate", "--json")
    assert (told.code, told.err) == (0, "")
    assert json.loads(told.out)["seconds"]["total"] <= 17
    result = run(*words, *there, "--budget", 17 / 60, "--json")
    assert result.code == 0
    # Two samples: 20 passes, and 8 of clean states again, shared by two workers.
    assert result.err == "budget of 0.283333 min: --samples 2 --draws 1, about 14 s\n"
    assert [json.loads(told.out)[key] for key in ("samples", "draws", "subset")] == [2, 1, None]
    assert json.loads(told.out)["passes"]["total"] == 28
    found = json.loads(result.out)
    same = json.loads(
        run("score", LLAMA, "--seq-len", 12, "--samples", 2, "--draws", 1, "--json").out
    )
    for document in (found, same):
        del document["run"], document["budget_minutes"]
    assert found == same


def test_a_budget_for_nothing() -> None:
    result = run("score", LLAMA, *FEW, "--budget", 1e-9)
    assert (result.code, result.out) == (2, "")
    assert "which the smallest experiment is expected to take" in result.err


def test_counts_are_integers() -> None:
    found = estimate(model_of("llama"), random_tokens(264, 2, 8), threads=1)
    for field in fields(Work):
        value = getattr(found.work, field.name)
        assert isinstance(value, int) or value.dtype == np.int64, field.name
    assert all(isinstance(value, int) for value in vars(found.arithmetic).values())
