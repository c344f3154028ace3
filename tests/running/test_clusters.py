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
from on_dask import PLANS
from processes import ENV

pytestmark = pytest.mark.dask
WORKERS = 3
LONG = ("llama", 240, 64, "gaussian")
RUNS: dict[str, tuple[Any, ...]] = {"score": LONG, "pruning": ("gemma2", 120, 64, "pruning")}


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


def command(output: Path, address: str, *words: object) -> list[str]:
    script = Path(__file__).with_name("on_dask.py")
    case, *others = words
    return [*map(str, (sys.executable, script, output, address, FIXTURES / str(case), *others))]


def ran(output: Path, address: str, *words: object) -> Any:
    subprocess.run(command(output, address, *words), env=ENV, check=True)
    return numbers(output)


@pytest.fixture
def here(tmp_path: Path) -> Callable[..., Any]:
    """The numbers of a run without workers."""
    return lambda *words: ran(tmp_path / "here.json", "", *words)


@pytest.mark.parametrize("plan", PLANS)
def test_scores(plan: str, cluster: Cluster, here: Any, tmp_path: Path) -> None:
    words = ("llama", 4, 32, plan)
    assert ran(tmp_path / "there.json", cluster.address, *words) == here(*words)


def wait_until(ready: Callable[[], object], process: "subprocess.Popen[bytes]") -> None:
    """Wait until the run in this process has come so far."""
    while not ready() and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None, "ended before anything could be killed"


@pytest.mark.parametrize("kind", RUNS)
def test_a_killed_worker_loses_nothing(
    kind: str, cluster: Cluster, here: Any, tmp_path: Path
) -> None:
    expected, output = here(*RUNS[kind]), tmp_path / "there.json"
    with subprocess.Popen(command(output, cluster.address, *RUNS[kind]), env=ENV) as process:
        for worker, after in ((0, 2), (1, 3)):
            wait_until(lambda: len(units(output)) >= after, process)  # noqa: B023
            cluster.workers[worker].send_signal(signal.SIGKILL)
    assert process.returncode == 0
    assert cluster.workers[2].poll() is None
    assert [worker.wait(5) for worker in cluster.workers[:2]] == [-signal.SIGKILL] * 2
    assert numbers(output) == expected


def test_a_killed_client_is_resumed(cluster: Cluster, here: Any, tmp_path: Path) -> None:
    expected, output = here(*LONG), tmp_path / "there.json"
    for after in (4, 12):
        with subprocess.Popen(command(output, cluster.address, *LONG), env=ENV) as process:
            wait_until(lambda: len(units(output)) >= after, process)  # noqa: B023
            process.kill()
    assert len(units(output)) >= 12
    assert ran(output, "", *LONG) == expected
