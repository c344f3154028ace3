"""A real dask cluster on this machine: `pytest -m dask`."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from documents import numbers, units
from processes import ENV, ended, ran, started

from refimpl import RefimplError
from refimpl.running.work_units import open_executor

pytestmark = pytest.mark.dask
WORKERS = 3
SCORE = ("score", FIXTURES / "llama", "--samples", 4, "--seq-len", 32)
LONG = (
    *("score", FIXTURES / "llama", "--samples", 240, "--seq-len", 64),
    *("--perturbation", "gaussian"),
)
COMMANDS: dict[str, tuple[Any, ...]] = {
    "score": LONG,
    "pruning": (
        *("score", FIXTURES / "gemma2", "--tokens", "random", "--samples", 120, "--seq-len", 64),
        *("--perturbation", "pruning", "--base", "owl", "--correct", "divergence"),
    ),
}


class Cluster:
    """A scheduler and workers, each a process of its own with its own cache of models."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[str]]()
        scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        assert scheduler.stderr is not None
        for line in scheduler.stderr:
            if found := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
                self.options = ("--executor", f"dask={found[1]}")
                break
        threading.Thread(target=scheduler.stderr.read, daemon=True).start()
        # Without a nanny nobody brings a worker back.
        worker = ("worker", found[1], "--nthreads", "1", "--no-nanny", "--no-dashboard")
        self.workers = [self.start(*worker) for _ in range(WORKERS)]

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]]
        quiet = subprocess.PIPE if words[0] == "scheduler" else subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=self.folder, env=ENV, stderr=quiet, text=True)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("dask"))
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("options", [(), ("--perturbation", "pruning", "--base", "owl")])
def test_scores(options: tuple[str, ...], cluster: Cluster, tmp_path: Path) -> None:
    ran(*SCORE, *options, "-o", tmp_path / "here.json")
    ran(*SCORE, *options, *cluster.options, "-o", tmp_path / "there.json")
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json")


def wait_until(ready: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Wait until the run in this process has come so far."""
    while not ready() and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, "ended before anything could be killed"


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_killed_worker_loses_nothing(kind: str, cluster: Cluster, tmp_path: Path) -> None:
    words = COMMANDS[kind]
    ran(*words, "-o", tmp_path / "here.json")
    output = tmp_path / "there.json"
    with started(*words, "-o", output, *cluster.options) as process:
        for worker, after in ((0, 2), (1, 3)):
            wait_until(lambda: len(units(output)) >= after, process)  # noqa: B023
            cluster.workers[worker].send_signal(signal.SIGKILL)
        ended(process)
    assert cluster.workers[2].poll() is None
    assert [worker.wait(5) for worker in cluster.workers[:2]] == [-signal.SIGKILL] * 2
    assert numbers(output) == numbers(tmp_path / "here.json")
    assert not (tmp_path / ".there.json.part").exists()


def test_a_killed_client_is_resumed(cluster: Cluster, tmp_path: Path) -> None:
    ran(*LONG, "-o", tmp_path / "here.json")
    output = tmp_path / "there.json"
    for after in (4, 12):
        with started(*LONG, "-o", output, *cluster.options) as process:
            wait_until(lambda: len(units(output)) >= after, process)  # noqa: B023
            process.kill()
    assert len(units(output)) >= 12
    ran(*LONG, "-o", output)
    assert numbers(output) == numbers(tmp_path / "here.json")


def test_control_c_does_not_wait_for_workers(cluster: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "there.json"
    with started(*LONG, "-o", output, *cluster.options) as process:
        wait_until(lambda: len(units(output)) >= 2, process)
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, err.count("\n")) == (130, 2), err
    assert err.startswith(f"interrupted: finished units are kept in {tmp_path}/.there.json.part")


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.running.work_units.WAIT", 2)
    with (
        pytest.raises(RefimplError, match="no dask scheduler with a worker answers at tcp://127"),
        open_executor("dask=tcp://127.0.0.1:9"),
    ):
        pass
