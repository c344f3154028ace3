"""A real dask cluster on this machine, one of whose workers is killed: `pytest -m dask`."""

import json
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
from documents import content, numbers
from processes import ENV, ended, ran, started

from refimpl import RefimplError
from refimpl.running.executors import open_pool

pytestmark = pytest.mark.dask
WORKERS = 3


class Cluster:
    """A scheduler and workers, each a process of its own with its own cache of models."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[str]]()
        scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        assert scheduler.stderr is not None
        for line in scheduler.stderr:
            if found := re.search(r"Scheduler at:\s+(tcp://\S+)", line):
                self.address = found[1]
                break
        threading.Thread(target=scheduler.stderr.read, daemon=True).start()
        self.workers = [self.worker() for _ in range(WORKERS)]

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]]
        quiet = subprocess.PIPE if words[0] == "scheduler" else subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=self.folder, env=ENV, stderr=quiet, text=True)
        self.processes.append(process)
        return process

    def worker(self) -> subprocess.Popen[str]:
        """A worker in one process: without a nanny nobody brings it back."""
        return self.start("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard")

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


def dask(cluster: Cluster) -> tuple[str, str]:
    return "--executor", f"dask={cluster.address}"


def wait_until(ready: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Wait until the run in this process has come so far."""
    while not ready() and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, "ended before anything could be killed"


def lines(part: Path) -> int:
    return part.read_bytes().count(b"\n") if part.exists() else 0


COMMANDS: dict[str, tuple[Any, ...]] = {
    "score": ("score", FIXTURES / "llama", "--samples", 40, "--seq-len", 64, "--draws", 6),
    "pruning": (
        *("score", FIXTURES / "gemma2", "--samples", 120, "--seq-len", 64),
        *("--perturbation", "pruning", "--base", "owl", "--correct", "divergence"),
    ),
    "eval": ("eval", FIXTURES / "llama", "--text", "long.txt", "--window", 64),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_killed_worker_loses_nothing(kind: str, cluster: Cluster, tmp_path: Path) -> None:
    words = list(COMMANDS[kind])
    if kind == "eval":
        words[3] = tmp_path / "long.txt"
        words[3].write_text((FIXTURES / "text.txt").read_text() * 150)
    ran(*words, "-o", tmp_path / "here.json")
    output, part = tmp_path / "there.json", tmp_path / "there.json.part"
    with started(*words, "-o", output, *dask(cluster)) as process:
        for worker, after in ((0, 2), (1, 3)):
            wait_until(lambda: lines(part) >= after, process)  # noqa: B023
            cluster.workers[worker].send_signal(signal.SIGKILL)
        ended(process)
    assert cluster.workers[2].poll() is None
    assert [worker.wait(5) for worker in cluster.workers[:2]] == [-signal.SIGKILL] * 2
    assert numbers(output) == numbers(tmp_path / "here.json")
    assert not part.exists()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_model_is_pruned_by_workers(method: str, cluster: Cluster, tmp_path: Path) -> None:
    words = ("prune", FIXTURES / "llama", "--samples", 4, "--method", method, "--nm", "2:4")
    ran(*words, "-o", tmp_path / "here")
    ran(*words, "-o", tmp_path / "there", *dask(cluster))
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_worker_killed_while_a_model_is_pruned(cluster: Cluster, tmp_path: Path) -> None:
    words = ("prune", FIXTURES / "llama", "--samples", 40, "--seq-len", 64, "--nm", "2:4")
    words += ("--method", "sparsegpt")
    ran(*words, "-o", tmp_path / "here")
    kept = tmp_path / ".there.part" / "kept"
    with started(*words, "-o", tmp_path / "there", *dask(cluster)) as process:
        wait_until(lambda: list(kept.glob("sent-*/state-0-*")), process)
        cluster.workers[0].send_signal(signal.SIGKILL)
        ended(process)
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_budget_for_workers(cluster: Cluster, tmp_path: Path) -> None:
    words = ("score", FIXTURES / "llama", "--samples", 4, "--seq-len", 32)
    estimate = json.loads(ran(*words, *dask(cluster), "--estimate", "--json"))
    assert estimate["threads"] == WORKERS
    ran(*words, "-o", tmp_path / "here.json")
    ran(*words, "-o", tmp_path / "there.json", *dask(cluster), "--budget", 5)
    budget = {"budget_minutes": 5}
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json") | budget


def test_a_killed_client_is_resumed(cluster: Cluster, tmp_path: Path) -> None:
    words = COMMANDS["score"]
    ran(*words, "-o", tmp_path / "here.json")
    output, part = tmp_path / "there.json", tmp_path / "there.json.part"
    for after in (4, 12):
        with started(*words, "-o", output, "--resume", *dask(cluster)) as process:
            wait_until(lambda: lines(part) >= after, process)  # noqa: B023
            process.kill()
    assert lines(part) >= 12
    ran(*words, "-o", output, "--resume")
    assert numbers(output) == numbers(tmp_path / "here.json")


def test_a_scheduler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.running.executors.WAIT", 2)
    with (
        pytest.raises(RefimplError, match="no dask scheduler answers at tcp://127"),
        open_pool("dask=tcp://127.0.0.1:9"),
    ):
        pass
