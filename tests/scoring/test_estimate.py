"""The estimate of scoring against real runs; and a budget, which stops the perturbing."""

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from gates import model_of
from program import ran, refused, run
from refusals import refusal_of
from tables import cases

from refimpl import Noise, Probes, Request, estimate, score
from refimpl.allocation.scores import Scores
from refimpl.model.ops import Array
from refimpl.show.blocks import duration
from refimpl.tokens import Tokens, random_tokens

LLAMA = FIXTURES / "llama"
TOKENS = random_tokens(200, 6, 12)
SPARSEGPT = Probes(probe_pruner="sparsegpt", probe_delta=0.1, probe_samples=3)
RUNS = {
    "gaussian": (Noise(), Request(correct="absorption")),
    "etas": (Noise(eta=(0.01, 0.1, 0.5)), Request("owl")),
    "draws": (Noise(draws=3, sink="exclude"), Request(correct=None)),
    "alphas": (Noise(eta=(0.01, 0.1), draws=2), Request("alphapruning")),
    "pruning": (Probes(), Request("owl")),
    "probes": (replace(SPARSEGPT, probe_pruner="wanda"), Request(correct=None)),
    "linears": (replace(SPARSEGPT, probe_pruner="wanda", units="linears"), Request(correct=None)),
}


seen: Counter[str] = Counter()
one_at_a_time = Lock()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the block passes of single sequences."""

    def counted(path: str) -> None:
        module, _, name = path.rpartition(".")
        function: Callable[..., Any] = getattr(__import__(module, fromlist=[name]), name)

        def noting(x: Any, weights: Any, place: Any, config: Any) -> Any:
            with one_at_a_time:
                seen["passes"] += x[..., 0].size // len(place.bias)  # of sequences in a row
            return function(x, weights, place, config)

        monkeypatch.setattr(path, noting)

    for module in ("model.stream", "model.statistics"):
        counted(f"refimpl.{module}.block")
    monkeypatch.setattr("refimpl.scoring.estimate.SECONDS", 0)


@pytest.mark.parametrize("options", [{}, {"memory": "30K"}, {"threads": 3, "memory": "40K"}])
@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("counting")
def test_passes_and_reads_are_those_of_the_run(name: str, options: dict[str, Any]) -> None:
    plan, request = RUNS[name]
    model, tokens = model_of("llama"), random_tokens(100, 3, 21)
    found = estimate(model, tokens, plan, request, **options)
    seen.clear()
    score(model, tokens, plan, request, **options)
    assert found.passes == seen["passes"]  # no token here is a sink


@pytest.mark.parametrize("where", ["kept", "elsewhere"])
@pytest.mark.usefixtures("counting")
def test_what_is_kept_and_where_it_runs_is_counted_too(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.scoring.experiment.STATES_AT_RISK", 2)
    monkeypatch.setattr("refimpl.scoring.experiment.SEQUENCES_AT_RISK", 1)
    monkeypatch.setattr("refimpl.running.work_units._opened", lambda *files: model)
    model, plan = model_of("llama"), Noise(sink="exclude")
    tokens, part = random_tokens(264, 3, 12), tmp_path / "part" if where == "kept" else None
    with ThreadPoolExecutor(2) as pool:
        executor = pool if where == "elsewhere" else None
        options: dict[str, Any] = {"threads": 2, "executor": executor}
        found = estimate(model, tokens, plan, finished=part, **options)
        seen.clear()
        score(model, tokens, plan, finished=part, **options)
    assert (found.elsewhere, found.threads) == (where == "elsewhere", 2)
    assert found.passes == seen["passes"]


@pytest.mark.parametrize(
    ("path", "plan", "request_", "calls"),
    [  # how often a run calls each function at least, in turn
        ("scoring.pruned_alone.decision", SPARSEGPT, Request(correct=None), 4 * 3 * 7),
        ("scoring.pruned_alone.decision", Probes(), Request(correct=None), 4 * 7),
        ("bases.lsa.lsa_error", Noise(), Request("lsa"), 4 * 7),
        ("bases.alphapruning.power_law", Noise(), Request("alphapruning"), 4 * 7),
    ],
)
def test_what_takes_long_is_predicted_to_take_long(
    path: str, plan: Noise | Probes, request_: Request, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = f"refimpl.{path}".rpartition(".")
    function = getattr(__import__(module, fromlist=[name]), name)

    now = 0.0  # of a clock on which nothing but this function takes time

    def slow(*args: Any, **options: Any) -> Any:
        nonlocal now
        now += 1
        return function(*args, **options)

    monkeypatch.setattr("refimpl.scoring.estimate.SECONDS", 0)
    monkeypatch.setattr("refimpl.scoring.estimate.time.perf_counter", lambda: now)
    assert estimate(model_of("llama"), TOKENS, plan, request_, threads=1).seconds == 0
    monkeypatch.setattr(f"refimpl.{path}", slow)
    seconds = estimate(model_of("llama"), TOKENS, plan, request_, threads=1).seconds
    assert calls <= seconds < 8 * calls


def test_memory_is_states_and_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = model_of("llama"), random_tokens(264, 3, 16)
    state = 16 * 32 * 4
    monkeypatch.setattr("refimpl.scoring.estimate.peak_memory", lambda: 1000)
    for room, held in ((6, 6), (11, 6), (12, 12), (10**6, 12 + 6)):
        plan = Noise(sink="exclude")
        found = estimate(model, tokens, plan, memory=room * state, threads=1).memory
        assert found == 1000 + held * state + 2 * 7296 * 4
    double = estimate(model, tokens, plan, dtype=np.float64, threads=1).memory
    assert double == 1000 + 2 * (held * state + 2 * 7296 * 4)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "0.012 s"), (9.94, "9.9 s"), (100.4, "100 s"), (600, "10 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of the experiment, on which a minute passes whenever it is looked at."""
    ticks = count(step=60)
    monkeypatch.setattr("refimpl.scoring.experiment.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr("refimpl.scoring.score.time.perf_counter", lambda: -0.5)


def first(samples: int) -> Tokens:
    return replace(TOKENS, ids=TOKENS.ids[:samples])


def numbers(scores: Scores) -> list[Array]:
    probes = [] if scores.probes is None else [scores.probes.arrivals]
    names = ("drift", "alignment", "coefficient", "stderr")
    each = [getattr(x, name) for x in scores.sweep for name in names]
    return [*probes, scores.sinks, scores.signals["owl"].main, *each]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("plan", [Noise(), Noise(draws=2, eta=(0.1, 0.2)), Noise(sink="exclude")])
@pytest.mark.parametrize(("minutes", "samples"), [(1e-9, 2), (1, 3), (2.4, 5), (9, 6)])
def test_a_budget_is_the_first_samples(plan: Noise | Probes, minutes: float, samples: int) -> None:
    steps = list[tuple[float, float]]()
    options: dict[str, Any] = {"budget": minutes, "progress": lambda *step: steps.append(step)}
    found = score(model_of("llama"), TOKENS, plan, **options)
    assert (found.budget_minutes, found.measured_samples) == (minutes, samples)
    assert steps[-1][0] == pytest.approx(steps[-1][1])  # the progress ends at the total
    same = score(model_of("llama"), first(samples), plan)
    for ours, theirs in zip(numbers(found), numbers(same), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("plan", [Probes(), SPARSEGPT])
def test_probes_are_pruned_by_all_samples(plan: Noise | Probes) -> None:
    found, model = score(model_of("llama"), TOKENS, plan, budget=1e-9), model_of("llama")
    assert found.measured_samples == 2
    same = score(model, TOKENS, replace(plan, probe_delta=plan.probe_delta or 0.1, probe_samples=2))
    np.testing.assert_array_equal(found.signals["owl"].main, same.signals["owl"].main)
    np.testing.assert_array_equal(found.sweep[0].drift, same.sweep[0].drift)


@pytest.mark.usefixtures("clock")
def test_a_budget_goes_on_where_it_stopped(tmp_path: Path) -> None:
    model, part = model_of("llama"), tmp_path / "part"
    for samples, minutes in ((2, 1e-9), (3, 1.5), (4, 3.5)):  # the clock goes on
        found = score(model, TOKENS, Noise(), budget=minutes, finished=part)
        assert found.measured_samples == samples
    whole, other = score(model, TOKENS, Noise(), finished=part), score(model, TOKENS, Noise())
    for ours, theirs in zip(numbers(whole), numbers(other), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("minutes", [-1, np.nan, np.inf])
def test_a_budget_is_a_time(minutes: float) -> None:
    refusal_of(score, model_of("llama"), TOKENS, budget=minutes, says="budget")


FEW = ("--samples", 4, "--seq-len", 12, "--threads", 1)


def test_the_command_estimates_and_stops(tmp_path: Path) -> None:
    out = ran("score", LLAMA, *FEW, "--eta", 0.01, "--estimate", "-o", tmp_path / "scores.json")
    words = " ".join(out.split())
    assert "40 block passes, states in 1 group" in words
    assert not list(tmp_path.iterdir())
    assert max(map(len, out.splitlines())) <= 100


def test_the_first_block_may_have_fewer_linears_than_others() -> None:
    words = ("--samples", 2, "--seq-len", 8, "--tokens", "random", "--estimate", "--json")
    assert json.loads(ran("score", FIXTURES / "ernie4_5_moe", *words))["seconds"] > 0


def test_as_json() -> None:
    words = ("--perturbation", "pruning", "--base", "alphapruning")
    found = json.loads(ran("score", LLAMA, *FEW, *words, "--estimate", "--json"))
    assert found["passes"] == 16 + 16 + 40
    assert (found["states"], found["units"]) == (16, 1)
    assert 0 < found["seconds"] < found["memory"]


@pytest.mark.parametrize(("words", "says"), cases("scoring", "estimates"))
def test_what_does_not_go_with_it(words: str, says: str) -> None:
    assert says in refused("score", LLAMA, *FEW, *words.split())


def test_the_table_says_what_was_perturbed() -> None:
    said = run("score", LLAMA, *FEW, "--budget", 1e-9)
    assert said.err == ""
    assert "1e-09 min, 2 of 4 samples perturbed" in " ".join(said.out.split())
    assert json.loads(ran("score", LLAMA, *FEW, "--json"))["scores"]["measured_samples"] == 4
