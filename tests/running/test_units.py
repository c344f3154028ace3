"""Work units: the same numbers wherever they run, and the errors of lost workers."""

import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import llama_of
from conftest import FIXTURES
from gates import bits, layouts, model_of
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal_of
from threadpoolctl import threadpool_info

from refimpl import Noise, Probes, Request, Scores, evaluate, read_model, score
from refimpl.loading.samples import random_tokens
from refimpl.loading.text import text_windows
from refimpl.model.model import Model
from refimpl.running import settings
from refimpl.running.file_system import ResumableError
from refimpl.running.provenance import stamps
from refimpl.running.settings import Settings, results
from refimpl.running.threads import Workers, thread_count
from refimpl.scoring.base_signals import signals_of
from refimpl.scoring.experiment import SummedSquares, dense_squares, experiment

LLAMA = FIXTURES / "llama"
PLANS = {
    "gaussian": (
        Noise(eta=(0.01, 0.5), draws=2, sink="exclude"),
        Request("alphapruning", correct=None),
    ),
    "pruning": (Probes(), Request("owl", correct="divergence")),
    "three of four": (Probes(precision=1.0), Request(correct="divergence")),
}


@pytest.fixture(params=["threads 1", "threads 3", "processes", "a pool of threads"])
def place(request: pytest.FixtureRequest, processes: Executor) -> Iterator[dict[str, Any]]:
    """Options of a run that say where its units go."""
    if request.param.startswith("threads"):
        yield {"threads": int(request.param[-1])}
    elif request.param == "processes":
        yield {"executor": processes}
    else:
        with ThreadPoolExecutor(3) as pool:
            yield {"executor": pool}


def scored(case: str, plan: str, **options: Any) -> Scores:
    model = model_of(case)
    tokens = random_tokens(model.config.vocab_size, 4, 12)
    return score(model, tokens, *PLANS[plan], **options)


@cache
def scored_here(case: str, plan: str) -> Any:
    return bits(scored(case, plan))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", layouts(["llama", "gemma2", "gpt2", "opt"], ("llama", "gemma2")))
def test_scores(case: str, plan: str, place: dict[str, Any]) -> None:
    assert bits(scored(case, plan, **place)) == scored_here(case, plan)


class Late(ThreadPoolExecutor):
    """Ends the unit that came first after those that came next."""

    def submit(self, call: Any, /, *args: Any, **options: Any) -> Future[Any]:
        late = not self._threads

        def called() -> Any:
            time.sleep(0.3 if late else 0.0)
            return call(*args, **options)

        return super().submit(called)


def test_sums_with_a_late_unit() -> None:
    model = model_of("gemma2")
    ids, plan = random_tokens(model.config.vocab_size, 9, 12).ids, Noise()
    found: list[Any] = []
    with Late(3) as pool, Late(3) as other:
        for one, two in ((None, None), (pool, other)):
            with Settings(threads=3, executor=one).open() as resources:
                dense = dense_squares(model, ids, resources)
            with Settings(threads=3, executor=two).open() as resources:
                measured = experiment(model, ids, plan, resources)
            found.append([bits(sorted(sums.items())) for sums in (*dense, *measured.squares)])
    assert found[0] == found[1]


def test_signals_and_evaluations(place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.evaluation.likelihood._BATCH", 40)
    model = model_of("llama")
    tokens = random_tokens(model.config.vocab_size, 3, 12)
    windows = text_windows(FIXTURES / "text.txt", LLAMA / "tokenizer.json", 20, 12)
    requests = [Request(base) for base in ("owl", "dlp", "alphapruning", "lsa")]
    results = [
        [signals_of(model, request, tokens, Settings(**options)) for request in requests]
        + [evaluate(model, windows, **options)]
        for options in ({}, place)
    ]
    assert bits(results[0]) == bits(results[1])


def with_metadata(folder: Path) -> Model:
    """A model whose configuration is in the metadata of its file."""
    llama_of(folder, "F32", {"config.json": (LLAMA / "config.json").read_text()})
    (folder / "config.json").unlink()
    return read_model(folder)


def of_a_file(folder: Path) -> Model:
    """A model that is named by its file, its configuration elsewhere."""
    folder.mkdir()
    weights = shutil.copy(LLAMA / "model.safetensors", folder / "other.safetensors")
    return read_model(weights, shutil.copy(LLAMA / "config.json", folder / "facts.json"))


MADE: dict[str, Callable[[Path], Model]] = {"a file": of_a_file, "metadata": with_metadata}
STORED = ("gpt2", "gpt_neox", "phi3", "gemma3", "opt", "llama_sharded")
INDEX = "llama_sharded/model.safetensors.index.json"


@pytest.mark.parametrize("case", [*STORED, INDEX, *MADE])
def test_models_elsewhere(case: str, processes: Executor, tmp_path: Path) -> None:
    model = MADE[case](tmp_path / "model") if case in MADE else read_model(FIXTURES / case)
    tokens = random_tokens(model.config.vocab_size, 5, 12)  # more than one per unit
    plan, request = PLANS["pruning"]
    found = [score(model, tokens, plan, request, executor=x) for x in (None, processes)]
    assert bits(found[0]) == bits(found[1])


def test_workers_compute_all_that_units_do(
    processes: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("llama")
    tokens = random_tokens(model.config.vocab_size, 3, 12)

    def here(*given: Any, **options: Any) -> Any:
        raise AssertionError("computed in the client")

    monkeypatch.setattr("refimpl.pruning.block.decision", here)
    options: dict[str, Any] = {"executor": processes}
    for name in ("block", "block_with_sums"):
        monkeypatch.setattr(f"refimpl.model.stream.{name}", here)
    signals_of(model, Request("owl"), tokens, Settings(**options))
    scored("llama", "pruning", **options)


@given(st.permutations(range(7)))
def test_squares_are_added_in_the_order_of_the_sequences(order: list[int]) -> None:
    terms, summed = np.array([1e16, 1.0, -1e16, 3.0, 1e-9, 7.0, -1.0]), SummedSquares(({},))
    for number in order:
        summed.add(number, ({"q": terms[number : number + 1].copy()},))
    assert summed.total[0]["q"].tolist() == [np.add.accumulate(terms)[-1]]


def test_units_carry_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Measuring(ThreadPoolExecutor):
        def submit(self, call: Any, /, *args: Any, **options: Any) -> Future[Any]:
            sizes.append(len(pickle.dumps((call, args, options))))
            return super().submit(call, *args, **options)

    with Measuring(2) as pool:
        scored("llama", "gaussian", executor=pool)
    config = model_of("llama").config
    ids, moments = 12 * 8, 8 * sum(width for _, width in config.linears[0].values())
    assert max(sizes) < max(ids, moments) + 2000  # addresses, options, paths
    assert sum(size > ids + 2000 for size in sizes) <= config.num_blocks  # for the signals of each
    assert max(sizes) < 4 * config.block_sizes[0] / 5


@dataclass(frozen=True)
class Asking:
    """What BLAS is allowed where a unit runs, or how that worker dies."""

    number: int
    dies: bool = False
    dtype: Any = np.float32

    def cost(self, config: Any) -> float:
        return 1.0

    def run(self, model: Model, workers: Workers, tick: Any) -> tuple[int, str, list[int]]:
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        blas = [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]
        return os.getpid(), str(model.path), blas


def asked(units: list[Asking], executor: Executor) -> list[Any]:
    done: list[float] = []
    settings = Settings(threads=2, executor=executor, progress=lambda n, _: done.append(n))
    with settings.open() as resources:
        found = list(results(units, read_model(LLAMA), resources))
    assert len(done) == len(units)
    return found


def test_blas_is_on_one_thread_in_workers(processes: Executor) -> None:
    found = asked([Asking(n) for n in range(6)], processes)
    assert {blas for _, _, all_blas in found for blas in all_blas} == {1}
    assert os.getpid() not in {process for process, _, _ in found}
    assert {path for _, path, _ in found} == {str(LLAMA.absolute())}


def test_a_dead_worker_is_an_error_that_says_what_to_do() -> None:
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(ResumableError, match="repeat the command") as lost,
    ):
        asked([Asking(0, dies=True), *map(Asking, range(1, 5))], pool)
    assert "a worker was lost (BrokenProcessPool" in lost.value.problem


def test_errors_of_units_are_those_of_the_client_and_not_repeated() -> None:
    runs: list[int] = []

    class Failing(Asking):
        def run(self, model: Model, workers: Workers, tick: Any) -> tuple[int, str, list[int]]:
            runs.append(self.number)
            raise ValueError("unpack")

    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="unpack") as error:
        asked([Failing(0)], pool)
    assert runs == [0]
    assert "runs.append" not in error.value.__notes__[0]
    assert 'raise ValueError("unpack")' in error.value.__notes__[0]


def test_work_that_cannot_be_sent_is_an_error(processes: Executor) -> None:
    class Local(Asking):
        """A class that no other process finds."""

    with pytest.raises(ResumableError, match="work that can be sent"):
        asked([Local(0)], processes)


def test_what_a_unit_refuses_is_refused_here(processes: Executor) -> None:
    model = model_of("llama")
    tokens = random_tokens(model.config.vocab_size, 2, 8)
    says = {"says": "beyond the range of float32", "remedy": "--dtype float64"}
    refusal_of(score, model, tokens, Noise(eta=(1e39,)), executor=processes, **says)


def test_other_files_under_the_same_path_are_refused(tmp_path: Path) -> None:
    model = read_model(llama_of(tmp_path / "model", "F32"))
    files = read_model, str(model.path), None
    assert settings._opened(*files, stamps(model)).config == model.config
    os.utime(model.files[0].path, (1, 1))
    other, says = (("model.safetensors", 1, 1),), "differ between this worker and its client"
    refusal_of(settings._opened, *files, other, says=says)


def test_an_executor_of_the_caller_is_left_open_and_says_how_much_it_does_at_once() -> None:
    with ThreadPoolExecutor(3) as pool:
        with Settings(executor=pool, threads=3).open() as resources:
            assert resources.at_once == 3
        assert pool.submit(int, "7").result() == 7
    with Settings(threads=4).open() as resources:
        assert resources.at_once == 1
    with Settings(executor=Executor()).open() as resources:
        assert resources.at_once == thread_count(None)
