"""Estimates of scoring: the counts against real runs, and what fits into a time."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import model_as, model_of
from hypothesis import given
from hypothesis import strategies as st
from program import ran, refused, run

from refimpl import Perturbation, RefimplError, Request, score
from refimpl.estimation import estimate as job
from refimpl.estimation.estimate import Estimate, Estimator, Seconds, estimate, seconds_of
from refimpl.estimation.measured_speed import Pace, pace
from refimpl.estimation.time_budget import fitting
from refimpl.estimation.workload import (
    Work,
    arithmetic,
    attended,
    perturbed_passes,
    rounds_of,
    work,
)
from refimpl.model.config import BlockKind, Config
from refimpl.model.kernels import QUERIES
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.position_tables import causal_bias, reach
from refimpl.running.executors import Pool
from refimpl.running.settings import Settings
from refimpl.scoring.dense_statistics import sequences_together
from refimpl.scoring.measurements import Address
from refimpl.show.estimate import duration
from refimpl.tokens import random_tokens

LLAMA = FIXTURES / "llama"
CASES = ("llama", "mistral", "gpt2", "gemma3")
VOCABULARIES = {model_of(case).config.vocab_size for case in CASES}
FAST = Pace(1.0, 0.1, 2.0, 0.5, 3.0, 0.2, 0.3, 0.4, 2, 0.0)
PASS_A_SECOND = Pace(0, 0, 1, 0, 0, 0, 0, 0, 2, 0)  # and nothing else takes time
RUNS = {
    "gaussian": (Perturbation(), Request()),
    "etas": (Perturbation(eta=(0.01, 0.1, 0.5)), Request("owl")),
    "draws": (Perturbation(draws=3, sink="exclude"), Request()),
    "subset": (Perturbation(eta=(0.01, 0.1), draws=2, subset=2), Request("alphapruning")),
    "pruning": (Perturbation("pruning"), Request("owl")),
    "lsa": (Perturbation(), Request("lsa")),
    "pruning a subset": (Perturbation("pruning", subset=2), Request()),
    "divergence": (Perturbation("pruning"), Request(correct="divergence")),
}


class Counting(Model):
    """A model that notes how often blocks are read."""

    def block(self, *args: Any, **options: Any) -> dict[str, Array]:
        with one_at_a_time:
            seen["loads"] += 1
        return super().block(*args, **options)


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

    def passes(x: Any, weights: Any, place: Any, config: Any) -> tuple[str, int]:
        return "passes", x[..., 0].size // len(place.bias)  # of sequences in a row

    def product(x: Any, weight: Any, bias: Any = None) -> tuple[str, int]:
        rows, (out, width) = x.size // x.shape[-1], weight.shape
        return ("head" if out in VOCABULARIES else "linears"), 2 * rows * out * width

    def attention(q: Any, k: Any, v: Any, *rest: Any) -> tuple[str, int]:
        pairs = q[..., 0].size * k.shape[-2]
        return "attention", 2 * pairs * (q.shape[-1] + v.shape[-1])

    seen.clear()
    monkeypatch.setattr("refimpl.scoring.grouping.ROWS", 1)  # a state in each stack
    for module in ("model.stream", "model.statistics"):
        counted(f"refimpl.{module}.block", passes)
    counted("refimpl.model.forward.linear", product)
    counted("refimpl.model.kernels.tile_of_attention", attention)
    counted("refimpl.scoring.state_group.head", lambda *args: ("heads", 1))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured."""
    monkeypatch.setattr(job, "pace", lambda *args: FAST)


@pytest.fixture
def pass_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that makes a pass a second."""
    monkeypatch.setattr(job, "pace", lambda *args: PASS_A_SECOND)


# Counts


def work_of(
    config: Config, sequences: int, length: int, plan: Perturbation, memory: int = 1 << 20
) -> Work:
    """The work on one thread."""
    with Settings(threads=1, memory=memory).open() as resources:
        return work(config, sequences, length, plan, Request(), resources)


def test_counts_of_one_thread() -> None:
    config, states = model_of("llama").config, [Address(0, 0, 0, b) for b in range(3)]
    count = work_of(config, 2, 16, Perturbation())
    assert (count.clean.tolist(), count.perturbed.tolist()) == ([2, 2, 2, 2], [0, 2, 4, 6])
    assert count.passes == 20
    assert perturbed_passes(states, 3, Perturbation()).tolist() == [0, 1, 2]
    assert perturbed_passes(states, 3, Perturbation("pruning")).tolist() == [1, 2, 3]
    assert rounds_of(np.array([1, 4, 5]), threads=4) == 4
    assert attended(BlockKind(window=None, rope=None), 256) == 64 * (64 + 128 + 192 + 256)
    for memory, together in ((1 << 16, 7), (1, 1)):
        with Settings(memory=memory).open() as resources:
            assert sequences_together(config, 16, resources, keep=False) == together


@pytest.mark.parametrize(
    ("case", "name", "options"),
    [
        (case, name, options)
        for i, name in enumerate(RUNS)
        for j, options in enumerate(({}, {"memory": "20K"}, {"threads": 3, "memory": "40K"}))
        for case in dict.fromkeys(("llama", CASES[(i + j) % len(CASES)]))
    ],
)
@pytest.mark.usefixtures("fast")
def test_the_estimate_counts_what_is_done(
    case: str, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("model.kernels", "estimation.workload"):  # so that there are many tiles
        monkeypatch.setattr(f"refimpl.{module}.QUERIES", 8)
    plan, request = RUNS[name]
    model = model_as(case, Counting)
    if model.config.num_blocks > 6:  # three sequences are not enough
        plan = replace(plan, subset=plan.subset and 4)
    tokens = random_tokens(100, 3, 21)
    told = estimate(model, tokens, plan, request, **options)
    assert not seen
    score(model, tokens, plan, request, **options)
    assert told.work.passes == seen["passes"]
    assert told.work.loads == seen["loads"] - model.config.num_blocks  # signals read them, too
    for kind in ("linears", "attention"):
        assert getattr(told.arithmetic, kind) == seen[kind], kind
    assert told.arithmetic.head == seen["head"]
    assert told.work.heads == seen["heads"]


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("kind", ["gaussian", "pruning"])
def test_states_in_stacks_are_counted_too(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.scoring.grouping.ROWS", 50)  # two states in each
    model, plan, tokens = (
        model_as("gemma3", Counting),
        Perturbation(kind),
        random_tokens(100, 3, 21),
    )
    for threads, memory in ((1, None), (2, "40K")):
        seen.clear()
        options: dict[str, Any] = {"threads": threads, "memory": memory}
        told = estimate(model, tokens, plan, **options)
        assert not seen
        score(model, tokens, plan, **options)
        assert told.work.passes == seen["passes"]
        assert told.work.loads == seen["loads"] - model.config.num_blocks
        assert told.arithmetic.linears == seen["linears"]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("where", ["here", "kept", "elsewhere"])
@pytest.mark.usefixtures("fast")
def test_what_is_kept_and_where_it_runs_is_counted_too(
    where: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.scoring.grouping.STATES_AT_RISK", 2)
    monkeypatch.setattr("refimpl.scoring.dense_statistics.SEQUENCES_AT_RISK", 1)
    monkeypatch.setattr("refimpl.running.work_units.ModelFiles.open", lambda files: model)
    model, plan = model_as("llama", Counting), Perturbation("pruning")
    tokens, part = random_tokens(264, 3, 12), tmp_path / "part" if where == "kept" else None
    with ThreadPoolExecutor(threads) as pool:
        executor = pool if where == "elsewhere" else None
        options: dict[str, Any] = {"threads": threads, "executor": executor}
        told = estimate(model, tokens, plan, Request("lsa"), kept=where == "kept", **options)
        score(model, tokens, plan, Request("lsa"), part=part, **options)
    assert (told.elsewhere, told.threads) == (where == "elsewhere", threads)
    assert told.work.passes == seen["passes"]
    assert told.work.loads == seen["loads"] - 4


@pytest.mark.usefixtures("fast")
def test_work_in_processes_is_what_was_estimated() -> None:
    model, plan = model_of("llama"), Perturbation("pruning")
    tokens, steps = random_tokens(264, 1, 12), list[tuple[float, float]]()
    options: dict[str, Any] = {"executor": "processes", "threads": 2}
    told = estimate(model, tokens, plan, **options)
    here = estimate(model, tokens, plan, threads=2)
    assert (told.elsewhere, told.threads) == (True, 2)
    assert told.work.clean.sum() > here.work.clean.sum()  # each piece repeats the clean state
    assert told.work.perturbed.tolist() == here.work.perturbed.tolist()
    score(model, tokens, plan, **options, progress=lambda *step: steps.append(step))
    assert steps[-1] == (told.work.passes, told.work.passes)


@given(st.integers(1, 300), st.none() | st.integers(1, 320), st.booleans())
def test_attention_looks_at_the_keys_that_its_queries_see(
    length: int, window: int | None, chunked: bool
) -> None:
    kind, positions = BlockKind(window, None, chunked=chunked), np.arange(length)
    bias = causal_bias(positions, reach(positions, kind), np.float32)
    pairs = 0
    for start in range(0, length, QUERIES):
        rows = bias[start : start + QUERIES]
        seen_keys = np.flatnonzero((rows == 0).any(axis=0))
        pairs += len(rows) * (seen_keys[-1] + 1 - seen_keys[0])
    assert attended(kind, length) == pairs


def test_counts_are_integers() -> None:
    found = estimate(model_of("llama"), random_tokens(264, 2, 8), threads=1)
    assert all(isinstance(x, int) or x.dtype == np.int64 for x in vars(found.work).values())
    assert all(isinstance(value, int) for value in vars(found.arithmetic).values())


def test_the_formula_of_the_documentation() -> None:
    config, sequences, length = model_of("llama").config, 5, 32
    blocks, room = config.num_blocks, 1 << 30
    for subset in (None, 2):
        plan = Perturbation(eta=(0.1, 0.2), draws=4, subset=subset)
        count = work_of(config, sequences, length, plan, memory=room)
        each = (blocks if subset is None else subset) * (blocks - 1) / 2
        assert count.passes == sequences * (blocks + 2 * 4 * each)
    flop = arithmetic(config, length, count, Request("alphapruning"))
    assert flop.linears == 2 * length * int(config.block_sizes[0]) * count.passes
    width = config.num_attention_heads * config.head_dim
    assert flop.attention == 4 * width * length**2 * count.passes  # one tile
    assert flop.total == flop.linears + flop.attention + flop.spectra + flop.signals
    square = replace(config, hidden_size=6, intermediate_size=6, num_attention_heads=1)
    square = replace(square, num_key_value_heads=1, head_dim=6)
    spectra = arithmetic(square, length, count, Request("alphapruning")).spectra
    assert spectra == blocks * 7 * (6**3 + 4 * 6**3 // 3)


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


@pytest.mark.usefixtures("fast")
def test_time_is_counts_times_pace() -> None:
    model, tokens = model_of("llama"), random_tokens(264, 3, 12)
    plan, request = Perturbation("pruning"), Request("alphapruning", {}, 0.7, "divergence", 0.1)
    found = estimate(model, tokens, plan, request, threads=2)
    # Dense: 3 sequences, 2 rounds, in 4 blocks. Then 3 clean and 3, 6, 9, 12 perturbed states.
    rounds = 2 * 4 + 3 + 5 + 6 + 8
    assert found.work.rounds == rounds
    assert found.seconds.check == 1
    assert found.seconds.experiment == pytest.approx(rounds * 2 + 8 * 0.1 + 12 * 0.5 / 2)
    assert found.seconds.head == pytest.approx(3 * (1 + 2) * 3)
    assert found.seconds.thinning == pytest.approx(4 * 0.2)
    assert found.seconds.spectra == pytest.approx(4 * 0.4 / 2)
    assert found.seconds.signals == pytest.approx(4 * 0.3)
    parts = [getattr(found.seconds, field.name) for field in fields(found.seconds)]
    assert found.seconds.total == pytest.approx(sum(parts))


def test_workers_elsewhere_share_the_time() -> None:
    config = model_of("llama").config
    count = work_of(config, 4, 12, Perturbation())

    def seconds(pool: Pool) -> Seconds:
        with Settings(threads=1).open() as resources:
            return seconds_of(count, FAST, config, replace(resources, pool=pool))

    alone, shared = seconds(Pool()), seconds(Pool(object(), 4))  # type: ignore[arg-type]
    assert seconds(Pool(workers=4)) == alone
    assert shared.experiment == pytest.approx(alone.experiment / 4)
    assert shared.signals == pytest.approx(alone.signals / 4)


@pytest.mark.parametrize("name", RUNS)
def test_the_pace_is_measured_on_a_few_blocks(name: str) -> None:
    plan, request = RUNS[name]
    with Settings(threads=2).open() as resources:
        found = pace(model_of("llama"), np.arange(12), plan, request, resources)
    pruning, alphas = plan.kind == "pruning", request.base == "alphapruning"
    assert min(found.turn, found.load, found.signals) > 0
    assert (found.thin > 0) == pruning
    assert (found.spectra > 0) == alphas
    assert (found.head > 0) <= (request.correct == "divergence")
    assert found.measuring < 60
    assert found.blocks == 2


def test_what_cannot_be_run_is_refused_before_anything_is_measured() -> None:
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


def estimator(plan: Perturbation, samples: int = 8) -> Estimator:
    """An estimator on one thread."""
    tokens = random_tokens(264, samples, 8)
    return Estimator(model_of("llama"), tokens, plan, None, Settings(threads=1))


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
@pytest.mark.usefixtures("pass_a_second")
def test_draws_go_first_then_samples_then_blocks(
    passes: int, choice: tuple[int, int, int | None]
) -> None:
    plan = Perturbation(draws=3)
    found = fitting(estimator(plan), 8, plan, passes / 60)
    assert chosen(found) == choice
    assert found.seconds.total <= passes


@pytest.mark.usefixtures("pass_a_second")
def test_a_time_that_is_too_short() -> None:
    plan = Perturbation(draws=3)
    with pytest.raises(RefimplError, match=r"at least 0\.24 minutes"):  # 14 s
        fitting(estimator(plan), 8, plan, 13 / 60)
    assert chosen(fitting(estimator(plan), 8, plan, 0.24)) == (2, 1, 2)
    for minutes in (0, -1, np.nan, np.inf):
        with pytest.raises(RefimplError, match="more than 0"):
            fitting(estimator(plan), 8, plan, minutes)


@pytest.mark.usefixtures("pass_a_second")
def test_what_was_asked_for_is_a_bound() -> None:
    assert chosen(fitting(estimator(Perturbation(), 1), 1, Perturbation(), 9)) == (1, 1, None)
    with pytest.raises(RefimplError, match=r"at least 0\.17 minutes"):  # all blocks of one sample
        fitting(estimator(Perturbation(), 1), 1, Perturbation(), 9 / 60)
    plan = Perturbation(subset=3)
    assert chosen(fitting(estimator(plan), 8, plan, 9)) == (8, 1, 3)
    few = Perturbation(draws=2, subset=1)  # which covers 4 blocks only with two samples and draws
    assert chosen(fitting(estimator(few, 2), 2, few, 9)) == (2, 2, 1)


# The command

FEW = ("--samples", 4, "--seq-len", 12, "--threads", 1)


def estimated(*words: object) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        ran("score", LLAMA, "--seq-len", 12, *words, "--estimate", "--json")
    )
    return told


def test_the_command_estimates_and_stops(tmp_path: Path) -> None:
    out = ran("score", LLAMA, *FEW, "--estimate", "-o", tmp_path / "scores.json")
    words = " ".join(out.split())
    assert "40 block passes, 16 of clean states, 24 of perturbed ones" in words
    assert "the time is an estimate from the first 2 blocks on 12 tokens" in words
    assert not list(tmp_path.iterdir())
    assert max(map(len, out.splitlines())) <= 100


def test_as_json() -> None:
    words = ("--perturbation", "pruning", "--correct", "divergence", "--base", "alphapruning")
    told = estimated(*FEW, *words, "--strength", 0.1)
    assert told["passes"] == {"dense": 16, "clean": 16, "pushed": 40, "total": 72}
    assert told["heads"] == 4 * 5
    probed = estimated(*FEW, *words)
    on_two = {"dense": 16, "clean": 8, "pushed": 3 * 20, "total": 84}
    assert probed["passes"] == on_two
    assert probed["heads"] == 2 * (1 + 3 * 4)
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
        assert f"{why} {words[0]}" in refused("score", LLAMA, *FEW, *words, *more)
    assert not list(tmp_path.iterdir())
    error = refused("score", LLAMA, *FEW, "--budget", 1e-9)
    assert "which the smallest experiment is expected to take" in error


def scores_json(*words: object) -> tuple[dict[str, Any], float | None]:
    """What the command prints as JSON, without how it ran, and its budget."""
    document = json.loads(ran("score", LLAMA, "--seq-len", 12, *words, "--json", quiet=False))
    del document["run"]
    return document, document.pop("budget_minutes")


@pytest.mark.usefixtures("pass_a_second")
def test_a_budget_is_the_run_with_what_it_chose() -> None:
    budget = ("--threads", 1, "--samples", 4, "--draws", 2, "--budget", 19 / 60)
    chosen = ("--threads", 1, "--samples", 2, "--draws", 1, "--subset", 3)
    said = run("score", LLAMA, "--seq-len", 12, *budget)
    assert said.err.startswith("budget of 0.316667 min: --samples 2 --draws 1 --subset 3, about")
    assert "0.316667 min, 2 samples chosen, 1 draw, 3 of 4 blocks" in " ".join(said.out.split())
    found, same = scores_json(*budget), scores_json(*chosen)
    assert found[0] == same[0]
    assert (found[1], same[1]) == (19 / 60, None)
    told = estimated(*budget)
    assert [told[key] for key in ("samples", "draws", "subset")] == [2, 1, 3]


@pytest.mark.usefixtures("pass_a_second")
def test_a_budget_in_processes() -> None:
    there = ("--executor", "processes", "--threads", 2)
    budget = ("--samples", 4, "--draws", 2, *there, "--budget", 17 / 60)
    told = estimated(*budget)
    assert told["seconds"]["total"] <= 17
    # Two samples: 20 passes, and 8 of clean states again, shared by two workers.
    assert [told[key] for key in ("samples", "draws", "subset")] == [2, 1, None]
    assert told["passes"]["total"] == 28
    said = run("score", LLAMA, "--seq-len", 12, *budget)
    assert said.code == 0
    assert said.err == "budget of 0.283333 min: --samples 2 --draws 1, about 14 s\n"
    assert scores_json(*budget)[0] == scores_json("--samples", 2, "--draws", 1)[0]
