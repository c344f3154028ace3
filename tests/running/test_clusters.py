"""A real dask cluster on this machine: `pytest -m dask`."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from gates import bits

from refimpl import Noise, Probes, Request, random_tokens, read_model, score

pytestmark = [pytest.mark.dask, pytest.mark.filterwarnings("ignore")]  # of dask
PLANS: dict[str, tuple[str, Noise | Probes, Request]] = {
    "gaussian": ("llama", Noise(), Request(correct="absorption")),
    "pruning": ("gemma2", Probes(), Request("owl", correct="divergence")),
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    """Three workers, each a process of its own with its own cache of models."""
    from distributed import Client, LocalCluster

    options = {"n_workers": 3, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(local_directory=tmp_path, **options) as cluster, Client(cluster) as client:
        client.wait_for_workers(3)
        yield client


def scored(plan: str, client: Any = None, **options: Any) -> Any:
    case, *asked = PLANS[plan]
    model = read_model(FIXTURES / case)
    tokens = random_tokens(model.config.vocab_size, 60, 32)
    if client is not None:
        options |= {"executor": client.get_executor(pure=False), "threads": 3}
    return bits(score(model, tokens, *asked, **options))


@pytest.mark.parametrize("plan", PLANS)
def test_a_killed_worker_loses_nothing(plan: str, client: Any) -> None:
    assert scored(plan, client) == scored(plan)
    first, second, third = workers = [*client.run(os.getpid).values()]

    def kill(done: float, total: float) -> None:
        while len(workers) > 1 and done > 0.3 * total * (4 - len(workers)):
            os.kill(workers.pop(), signal.SIGKILL)

    assert scored(plan, client, progress=kill) == scored(plan)
    assert workers == [first]
    assert not {second, third} & {*client.run(os.getpid).values()}


def test_an_interrupted_client_is_resumed(client: Any, tmp_path: Path) -> None:
    def interrupt(done: float, total: float) -> None:
        if done > 0.5 * total:
            raise KeyboardInterrupt

    part = {"finished": tmp_path / ".out.part"}
    with pytest.raises(KeyboardInterrupt):
        scored("gaussian", client, progress=interrupt, **part)
    assert [*tmp_path.rglob("*.npz")]
    assert scored("gaussian", **part) == scored("gaussian")
