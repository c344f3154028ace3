"""A real dask cluster on this machine, one of whose workers is killed: `pytest -m dask`."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from test_resume import content, numbers

from refimpl import RefimplError
from refimpl.running.executors import open_pool

pytestmark = pytest.mark.dask
WORKERS = 3
ENV = os.environ | {"PYTHONPATH": str(FIXTURES.parent), "OMP_NUM_THREADS": "1"}


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


def refimpl(*words: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "refimpl", *map(str, words)]
    return subprocess.Popen(
        command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ran(*words: object) -> str:
    with refimpl(*words) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


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
    with refimpl(*words, "-o", output, "--executor", f"dask={cluster.address}") as process:
        for worker, after in ((0, 2), (1, 3)):
            while lines(part) < after and process.poll() is None:
                time.sleep(0.002)
            assert process.poll() is None, "ended before a worker could be killed"
            cluster.workers[worker].send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert cluster.workers[2].poll() is None
    assert [worker.wait(5) for worker in cluster.workers[:2]] == [-signal.SIGKILL] * 2
    assert numbers(output) == numbers(tmp_path / "here.json")
    assert not part.exists()


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_model_is_pruned_by_workers(method: str, cluster: Cluster, tmp_path: Path) -> None:
    words = ("prune", FIXTURES / "llama", "--samples", 4, "--method", method, "--nm", "2:4")
    ran(*words, "-o", tmp_path / "here")
    ran(*words, "-o", tmp_path / "there", "--executor", f"dask={cluster.address}")
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_worker_killed_while_a_model_is_pruned(cluster: Cluster, tmp_path: Path) -> None:
    words = ("prune", FIXTURES / "llama", "--samples", 40, "--seq-len", 64, "--nm", "2:4")
    words += ("--method", "sparsegpt")
    ran(*words, "-o", tmp_path / "here")
    kept, place = tmp_path / ".there.part" / "kept", f"dask={cluster.address}"
    with refimpl(*words, "-o", tmp_path / "there", "--executor", place) as process:
        while not list(kept.glob("sent-*/state-0-*")) and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, "ended before a worker could be killed"
        cluster.workers[0].send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert content(tmp_path / "there") == content(tmp_path / "here")


def test_a_budget_for_workers(cluster: Cluster, tmp_path: Path) -> None:
    words = ("score", FIXTURES / "llama", "--samples", 4, "--seq-len", 32)
    place = ("--executor", f"dask={cluster.address}")
    told = json.loads(ran(*words, *place, "--estimate", "--json"))
    assert told["threads"] == WORKERS
    ran(*words, "-o", tmp_path / "here.json")
    ran(*words, "-o", tmp_path / "there.json", *place, "--budget", 5)
    budget = {"budget_minutes": 5}
    assert numbers(tmp_path / "there.json") == numbers(tmp_path / "here.json") | budget


def test_a_killed_client_is_taken_up(cluster: Cluster, tmp_path: Path) -> None:
    words, place = COMMANDS["score"], ("--executor", f"dask={cluster.address}")
    ran(*words, "-o", tmp_path / "here.json")
    output, part = tmp_path / "there.json", tmp_path / "there.json.part"
    for after in (4, 12):
        with refimpl(*words, "-o", output, "--resume", *place) as process:
            while lines(part) < after and process.poll() is None:
                time.sleep(0.002)
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
