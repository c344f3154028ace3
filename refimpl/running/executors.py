"""The executor that --executor opens; the library takes any that is open."""

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager

from refimpl.errors import RefimplError, need

WAIT = 30  # seconds for a scheduler to answer, and for its first worker


@contextmanager
def open_executor(name: str) -> Iterator[tuple[Executor, int]]:
    """Open the executor that --executor names; yields it and its number of workers.

    A dask scheduler repeats the work of a lost worker on another one.
    """
    address = name.removeprefix("dask=")
    if address in (name, ""):
        raise RefimplError(
            f"executor {name!r} is unknown",
            "dask=ADDRESS, with the address of a dask scheduler",
            "omit `executor` to use the threads of this process",
        )
    need("dask", "distributed")
    from distributed import Client

    with ExitStack() as ends:
        try:
            client = ends.enter_context(Client(address, timeout=WAIT))
            client.wait_for_workers(1, WAIT)
        except (OSError, ValueError) as error:
            raise RefimplError(
                f"no dask scheduler with a worker answers at {address} ({error})",
                "the address that a scheduler prints when it starts, such as tcp://10.0.0.1:8786",
                "start one with `dask scheduler`, and workers with `dask worker ADDRESS`",
            ) from error
        yield client.get_executor(pure=False), sum(client.nthreads().values())
