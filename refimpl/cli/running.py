"""The options of how and where a computation runs."""

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from refimpl.cli.options import option

RUNNING = "Running"  # heading in --help


@dataclass(frozen=True)
class Running:
    """How a computation runs."""

    dtype: Literal["float32", "float64"]
    threads: int | None
    memory: str | None


@dataclass(frozen=True)
class LongRun:
    """Where a long computation runs, and whether a killed one is taken up."""

    executor: str
    resume: bool


def running(
    *,
    dtype: Annotated[
        Literal["float32", "float64"],
        option("Precision of the computation; float64 certifies float32.", panel=RUNNING),
    ] = "float32",
    threads: Annotated[
        int | None,
        option("Worker threads, or processes, 1 or more. Default: one per core.", "N", RUNNING),
    ] = None,
    memory: Annotated[
        str | None,
        option(
            "Memory for residual states, of all workers together, such as 512M or 1.5G; results do "
            "not depend on it. Default: what is free, at most 2 GiB.",
            "SIZE",
            RUNNING,
        ),
    ] = None,
) -> Running:
    """How the options want the computation to run."""
    return Running(dtype, threads, memory)


def long_run(
    *,
    executor: Annotated[
        str,
        option(
            "Where the work runs: on threads of this process, in processes on this machine, on the "
            "workers of a dask scheduler, or in the processes that mpiexec started. Results do not "
            "depend on it.",
            "threads|processes|dask=ADDRESS|mpi",
            RUNNING,
        ),
    ] = "threads",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Take up a run that was killed, from what it left beside -o; start where there is "
            "nothing.",
            rich_help_panel=RUNNING,
        ),
    ] = False,
) -> LongRun:
    """Where the options want a long computation to run."""
    return LongRun(executor, resume)
