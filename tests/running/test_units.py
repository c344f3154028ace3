"""Work units: the same numbers wherever they run, and the errors of lost workers."""

import os
import pickle
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import llama_of
from conftest import FIXTURES
from documents import content
from gates import bits, model_of
from hypothesis import given
from hypothesis import strategies as st
from processes import started
from program import refused
from refusals import refusal_of
from threadpoolctl import threadpool_info

from refimpl import (
    Pattern,
    Perturbation,
    Pruner,
    RefimplError,
    Request,
    Scores,
    evaluate,
    prune,
    read_model,
    score,
)
from refimpl.model.model import Model
from refimpl.model.statistics import Statistic, sum_of_outer_products, sum_of_squares
from refimpl.pruning.calibration import LocalCalibration
from refimpl.pruning.partial_pruning import PartialPruning, results_file
from refimpl.pruning.pruned_files import PrunedFiles
from refimpl.pruning.remote_calibration import RemoteCalibration
from refimpl.running.executors import LostWorkerError, Pool, open_pool
from refimpl.running.settings import Settings
from refimpl.running.threads import Workers
from refimpl.running.work_units import InOrder, ModelFiles, results
from refimpl.scoring.dense_statistics import dense_squares
from refimpl.scoring.experiment import experiment
from refimpl.scoring.grouping import balanced, stacks
from refimpl.scoring.measurements import addresses
from refimpl.scoring.signals import signals
from refimpl.storage.arrays import received, sent
from refimpl.storage.partial_results import PartialResults
from refimpl.tokens import random_tokens, text_windows

LLAMA = FIXTURES / "llama"
SCORE = ("score", LLAMA, "--samples", 1, "--seq-len", 8)
PLANS = {
    "gaussian": (Perturbation(eta=(0.01, 0.5), draws=2, sink="exclude"), Request("alphapruning")),
    "pruning": (Perturbation("pruning"), Request("owl", correct="divergence")),
}


@pytest.fixture(scope="module")
def processes() -> Iterator[Executor]:
    """Two processes for all tests here: to start them takes long."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        yield pool


@pytest.fixture(params=["threads 1", "threads 3", "processes", "a pool of threads"])
def place(request: pytest.FixtureRequest, processes: Executor) -> Iterator[dict[str, Any]]:
    """Options of a run that say where its units go."""
    if request.param.startswith("threads"):
        yield {"executor": "threads", "threads": int(request.param[-1])}
    elif request.param == "processes":
        yield {"executor": processes}
    else:
        with ThreadPoolExecutor(3) as pool:
            yield {"executor": pool}


def scored(case: str, plan: str, **options: Any) -> Scores:
    model = model_of(case)
    tokens = random_tokens(model.config.vocab_size, 3, 12)
    return score(model, tokens, *PLANS[plan], **options)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "opt"])
def test_scores(case: str, plan: str, place: dict[str, Any]) -> None:
    assert bits(scored(case, plan, **place)) == bits(scored(case, plan))


@pytest.mark.parametrize("memory", ["40K", "1M"])
def test_memory_of_the_workers(memory: str, processes: Executor) -> None:
    found = scored("llama", "gaussian", executor=processes, memory=memory)
    assert bits(found) == bits(scored("llama", "gaussian"))


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
    ids, plan = random_tokens(model.config.vocab_size, 9, 12).ids, Perturbation()
    found: list[Any] = []
    with Late(3) as pool, Late(3) as other:
        for one, two in (("threads", "threads"), (pool, other)):
            with Settings(threads=1, executor=one).open() as resources:
                dense = dense_squares(model, ids, resources)
            with Settings(threads=1, executor=two).open() as resources:
                measured = experiment(model, ids, plan, resources)
            found.append([bits(sorted(sums.items())) for sums in (*dense, *measured.squares)])
    assert found[0] == found[1]


def test_signals_and_evaluations(place: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.evaluation.batch.BATCH", 40)
    model = model_of("llama")
    tokens = random_tokens(model.config.vocab_size, 3, 12)
    windows = text_windows(FIXTURES / "text.txt", LLAMA / "tokenizer.json", 20, 12)
    requests = [Request(base) for base in ("owl", "dlp", "alphapruning", "lsa")]
    results = [
        [signals(model, request, tokens, Settings(**options)) for request in requests]
        + [evaluate(model, windows, **options)]
        for options in ({}, place)
    ]
    assert bits(results[0]) == bits(results[1])


@pytest.mark.parametrize("stored", ["F32", "BF16"])
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude", "random"])
def test_pruned_files(method: Any, stored: str, place: dict[str, Any], tmp_path: Path) -> None:
    model = read_model(llama_of(tmp_path / "model", stored))
    tokens = random_tokens(model.config.vocab_size, 3, 24)
    for name, options in (("here", {}), ("there", place)):
        prune(model, tmp_path / name, Pattern(2, 4), Pruner(method), tokens, **options)
    assert content(tmp_path / "here") == content(tmp_path / "there")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


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


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("case", [*STORED, INDEX, *MADE])
def test_models_elsewhere(case: str, method: Any, processes: Executor, tmp_path: Path) -> None:
    model = MADE[case](tmp_path / "model") if case in MADE else read_model(FIXTURES / case)
    tokens = random_tokens(model.config.vocab_size, 5, 12)  # more than one per unit
    for name, options in (("here", {}), ("there", {"executor": processes, "memory": 1})):
        options |= {"dtype": np.float64}
        prune(model, tmp_path / name, Pattern(2, 4), Pruner(method), tokens, **options)
    assert content(tmp_path / "here") == content(tmp_path / "there")


@pytest.mark.parametrize("statistic", [sum_of_squares, sum_of_outer_products])
def test_calibration_with_a_late_unit(statistic: Statistic, tmp_path: Path) -> None:
    model = model_of("gemma2")
    ids, weights = random_tokens(model.config.vocab_size, 9, 12).ids, model.block(0, np.float32)
    new = tmp_path / "new"
    for folder in (new, results_file(new).parent):
        folder.mkdir()
    with (
        Late(3) as pool,
        Settings(threads=1).open() as resources,
        PartialResults[str, Any](results_file(new), {}, resume=False) as results,
    ):
        partial, elsewhere = PartialPruning(new, results), replace(resources, pool=Pool(pool, 3))
        pruned = PrunedFiles(model, new)
        remote = RemoteCalibration(model, ids, statistic, elsewhere, partial, pruned)
        local = LocalCalibration(model, ids, statistic, resources)
        found, expected = (list(x.sums(weights).items()) for x in (remote, local))
        assert [(k, bits(v)) for k, v in found] == [(k, bits(v)) for k, v in expected]
        assert list(partial.folder.rglob("sums-*")) == []


def test_nothing_is_calibrated_here_when_there_are_workers(
    tmp_path: Path, processes: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, passes = model_of("llama"), list[float]()
    tokens = random_tokens(model.config.vocab_size, 3, 12)

    def here(*given: Any, **options: Any) -> Any:
        raise AssertionError("a block pass in the client")

    for name in ("block", "block_with_sums"):
        monkeypatch.setattr(f"refimpl.model.stream.{name}", here)
    monkeypatch.setattr("refimpl.bases.owl.owl_outlier_percent", here)
    options: dict[str, Any] = {"executor": processes}
    progress = {**options, "progress": lambda done, total: passes.append(done / total)}
    prune(model, tmp_path / "out", Pattern(2, 4), Pruner("sparsegpt"), tokens, **progress)
    # 3 sequences, 4 blocks before and 3 after; 4 blocks decided
    assert passes == [n / 25 for n in range(1, 26)]
    signals(model, Request("owl"), tokens, Settings(**options))
    scored("llama", "pruning", **options)


def test_an_older_copy_of_a_unit_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    assert sent(np.arange(3), path).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    big = np.arange(6.0).reshape(2, 3)
    names = {sent(big, path), sent(big, path)}  # which ran twice
    assert names == {str(path)}
    assert os.listdir(tmp_path) == ["sums"]
    np.testing.assert_array_equal(received(names.pop()), big)
    assert os.listdir(tmp_path) == []


@given(
    st.integers(1, 5), st.integers(1, 9), st.integers(1, 3), st.integers(5, 40), st.integers(1, 20),
    st.sampled_from([170, 300]),
)  # fmt: skip
def test_every_state_is_in_one_group(
    sequences: int, blocks: int, draws: int, room: int, workers: int, length: int
) -> None:
    states = addresses(sequences, blocks, Perturbation(eta=(0.1, 0.2), draws=draws))
    cut = stacks(states, length)
    parts = list(balanced(cut, blocks, room, workers))
    assert sorted(stack for part in parts for stack in part) == sorted(cut)
    for part in parts:
        assert 1 <= sum(map(len, part)) <= room - 2
        assert len({(stack[0].sequence, stack[0].draw) for stack in part}) == 1


@given(st.integers(8, 40), st.integers(1, 16))
def test_groups_are_of_about_one_size(blocks: int, workers: int) -> None:
    states = addresses(1, blocks, Perturbation())
    parts = list(balanced(stacks(states, 512), blocks, 10**6, workers))  # a state in each
    passes = [sum(blocks - a.block for (a,) in part) for part in parts]
    share = sum(passes) / (2 * workers)
    assert max(passes) <= share + blocks
    assert len(parts) >= min(workers, blocks // 4)


@given(st.permutations(range(7)))
def test_results_are_handed_on_in_order(order: list[int]) -> None:
    ordered, seen = InOrder[int](), list[int]()
    for number in order:
        seen.extend(ordered.add(number, number))
    assert seen == list(range(7))


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


def asked(units: list[Asking], choice: Any, threads: int = 2) -> list[Any]:
    done: list[float] = []
    with open_pool(choice, threads) as where, Workers(1) as workers:
        found = [x for _, x in results(units, read_model(LLAMA), where, workers, done.append)]
    assert len(done) == len(units)
    return found


def test_blas_is_on_one_thread_in_workers(processes: Executor) -> None:
    found = asked([Asking(n) for n in range(6)], processes)
    assert {blas for _, _, all_blas in found for blas in all_blas} == {1}
    assert os.getpid() not in {process for process, _, _ in found}
    assert {path for _, path, _ in found} == {str(LLAMA.absolute())}


def test_a_dead_worker_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(LostWorkerError, match="--resume") as lost:
        asked([Asking(0), Asking(1, dies=True), *(Asking(n) for n in range(2, 9))], "processes")
    assert "a worker was lost (BrokenProcessPool" in lost.value.problem


def _cascade_future(future: Future[Any], result: Any) -> None:
    """What dask does with the result of a worker that has just died."""
    try:
        _, exc, tb = result
        raise exc.with_traceback(tb)
    except BaseException as error:
        future.set_exception(error)


class Misreading(ThreadPoolExecutor):
    """Takes every second result for an error, as dask may when a worker dies."""

    count = 0

    def submit(self, call: Any, /, *args: Any, **options: Any) -> Future[Any]:
        self.count += 1
        if self.count % 2:
            return super().submit(call, *args, **options)
        misread = Future[Any]()
        _cascade_future(misread, (call(*args, **options), "files") if self.count % 4 else 7)
        return misread


def test_results_that_dask_takes_for_errors_are_computed_again() -> None:
    with Misreading(2) as pool:
        assert len(asked([Asking(n) for n in range(6)], pool)) == 6
    assert pool.count == 11


@pytest.mark.parametrize("error", [ValueError("cannot unpack this"), TypeError("unpack")])
def test_other_errors_of_units_are_not_repeated(error: Exception) -> None:
    class Failing(Asking):
        def run(self, model: Model, workers: Workers, tick: Any) -> tuple[int, str, list[int]]:
            raise error

    with ThreadPoolExecutor(2) as pool, pytest.raises(type(error), match="unpack"):
        asked([Failing(0)], pool)

    class Elsewhere(ThreadPoolExecutor):
        """Gives errors without a traceback, as processes do."""

        def submit(self, call: Any, /, *args: Any, **options: Any) -> Future[Any]:
            failed = Future[Any]()
            failed.set_exception(type(error)(*error.args))
            return failed

    with Elsewhere(2) as pool, pytest.raises(type(error), match=str(error)):
        asked([Asking(0)], pool)


def test_what_a_unit_refuses_is_refused_here(processes: Executor) -> None:
    model = model_of("llama")
    tokens = random_tokens(model.config.vocab_size, 2, 8)
    with pytest.raises(RefimplError, match="beyond the range of float32") as error:
        score(model, tokens, Perturbation(eta=(1e39,)), executor=processes)
    assert "--dtype float64" in error.value.remedy


def test_other_files_under_the_same_path_are_refused(tmp_path: Path) -> None:
    model = read_model(llama_of(tmp_path / "model", "F32"))
    files = ModelFiles.of(model)
    assert files.open().config == model.config
    os.utime(model.files[0].path, (1, 1))
    other = ModelFiles(files.path, files.config, (("model.safetensors", 1, 1),))
    refusal_of(other.open, says="differ between this worker and its client")


WAITING = """
import sys, time
from pathlib import Path
from refimpl.running.executors import open_pool

def slow(begun):
    Path(begun).touch()
    time.sleep(600)

if __name__ == "__main__":
    begun = [sys.argv[2] + name for name in "ab"]
    with open_pool("processes", 2) as where:
        futures = [where.executor.submit(slow, name) for name in begun]
        while not all(Path(name).exists() for name in begun):
            time.sleep(0.01)
        print("begun", flush=True)
        if sys.argv[1] == "fails":
            raise SystemExit(7)
        futures[0].result()
"""


@pytest.mark.parametrize("how", ["killed", "fails"])
def test_no_process_is_left_behind(how: str, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    program = (sys.executable, str(tmp_path / "waiting.py"))
    with started(how, tmp_path / "begun", program=program) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        if how == "killed":
            process.kill()
        code = process.wait(60)
        process.stdout.read()  # ends when the last process that could write to it has ended
    assert code == (-signal.SIGKILL if how == "killed" else 7)


@pytest.mark.parametrize("name", ["thread", "dask", "dask=", "mpi=3", ""])
def test_unknown_executors_are_refused(name: str) -> None:
    error = refused(*SCORE, "--executor", name)
    assert f"error: executor {name!r} is unknown" in error
    assert "expected: threads, processes, dask=ADDRESS or mpi" in error


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("dask=tcp://127.0.0.1:1", "distributed", "dask"), ("mpi", "mpi4py.futures", "mpi")],
)
def test_a_missing_package_is_named(
    name: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    error = refused(*SCORE, "--executor", name)
    assert f"next: pip install 'refimpl[{extra}]'" in error


def test_mpi_is_asked_for_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool(ThreadPoolExecutor):
        num_workers = 3

    monkeypatch.setitem(sys.modules, "mpi4py", type(sys)("mpi4py"))
    module: Any = type(sys)("mpi4py.futures")
    module.MPIPoolExecutor = Pool
    monkeypatch.setitem(sys.modules, "mpi4py.futures", module)
    with open_pool("mpi") as found:
        assert isinstance(found.executor, Pool)
        assert found.workers == 3
    assert bits(scored("llama", "gaussian", executor="mpi")) == bits(scored("llama", "gaussian"))


def test_an_executor_of_the_caller_is_left_open() -> None:
    with ThreadPoolExecutor(3) as pool:
        with open_pool(pool) as found:
            assert found == Pool(pool, 3)
        assert pool.submit(int, "7").result() == 7


def test_an_executor_needs_numpy() -> None:
    for option in (("--executor", "processes"), ("--resume",)):
        error = refused("score", LLAMA, "--runtime", "onnxruntime", *option)
        assert f"{option[0]} with --runtime onnxruntime" in error
