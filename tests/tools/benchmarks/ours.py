"""Our side of every comparison; each function runs in a process of its own."""

import contextlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

import refimpl
from refimpl.loading.samples import id_tokens, id_windows, random_tokens
from refimpl.running.threads import Workers

GEMM = 4096  # rows and columns of the product that sets the machine's rate


def gemm_rate(rounds: int = 3, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """Operations per second of NumPy's float32 matrix product, a few times."""
    a = np.random.default_rng(0).standard_normal((GEMM, GEMM), np.float32)
    out, rates = np.empty_like(a), []
    for _ in range(rounds):
        start = clock()
        np.matmul(a, a, out=out)
        rates.append(2.0 * GEMM**3 / (clock() - start))
    return rates


def score(model: str, samples: int, tokens: int, threads: int | None = None) -> dict[str, Any]:
    """Seconds of `refimpl.score`, reading the weights included, without the signals of OWL."""
    ready = refimpl.read_model(model)
    given = random_tokens(ready.config.vocab_size, samples, tokens)
    run = refimpl.score  # imported before the clock starts
    start, processor = time.perf_counter(), time.process_time()
    found = run(ready, given, refimpl.Noise(), threads=threads, bases=())
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    r = found.sweep[0].coefficient.tolist()
    return {"seconds": seconds, "processor": processor, "r": r}


def score_command(model: str, samples: int, tokens: int) -> dict[str, Any]:
    """Seconds of `refimpl score` on random ids, the start of the interpreter included."""
    words = f"-m refimpl score {model} --perturbation gaussian --tokens random --samples {samples}"
    words += f" --seq-len {tokens}"
    start = time.perf_counter()
    subprocess.run([sys.executable, *words.split()], check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "peak": 1024 * used.ru_maxrss}


def score_between_products(
    model: str, samples: int, tokens: int, repetitions: int
) -> dict[str, Any]:
    """Scoring and NumPy's matrix product by turns in one process.

    By the clock: seconds of scoring, and the rate of the product on all threads, the median of
    those before and after it. By the processor: its seconds, and the rate of one thread.
    """
    from threadpoolctl import threadpool_limits

    def products() -> tuple[list[float], list[float]]:
        with threadpool_limits(1, user_api="blas"):
            alone = gemm_rate(2, time.thread_time)
        return gemm_rate(), alone

    gemm_rate(2)
    found: dict[str, list[float]] = {k: [] for k in ("seconds", "rates", "processor", "core_rates")}
    before = products()
    for _ in range(repetitions):
        once = score(model, samples, tokens)
        for key in ("seconds", "processor"):
            found[key].append(once[key])
        after = products()
        for key, some, more in zip(("rates", "core_rates"), before, after, strict=True):
            found[key].append(median(some + more))
        before = after
    return found


def score_of_sizes(
    models: list[str],
    samples: list[int],
    tokens: list[int],
    threads: list[int | None],
    repetitions: int,
) -> dict[str, Any]:
    """Least seconds of scoring at each size, the sizes taking turns."""
    sizes = list(zip(models, samples, tokens, threads, strict=True))
    seconds: list[list[float]] = [[] for _ in sizes]
    score(*sizes[0])  # warm
    for _ in range(repetitions):
        for row, size in zip(seconds, sizes, strict=True):
            row.append(score(*size)["seconds"])
    return {"seconds": [min(row) for row in seconds]}


def command(arguments: list[str]) -> dict[str, Any]:
    """A command of the program, in this process, and the JSON that it prints."""
    from refimpl.cli.main import main

    sys.argv, printed = ["refimpl", *arguments, "--json"], io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            main()
        except SystemExit as left:
            if left.code:
                raise
    document = json.loads(printed.getvalue())
    return {"seconds": document.get("scores", document)["run"]["seconds"], "printed": document}


def spectra(model: str, blocks: int) -> dict[str, Any]:
    """AlphaPruning's alphas of the first blocks."""
    from refimpl.running.settings import Settings
    from refimpl.scoring.base_signals import Chosen, block_signals

    ready = refimpl.read_model(model)
    first = replace(ready, config=replace(ready.config, blocks=ready.config.blocks[:blocks]))
    with Settings().open() as resources:
        start = time.perf_counter()
        chosen = Chosen.of(refimpl.Request("alphapruning"), ())
        (signal,) = block_signals(first, chosen, "weights", resources).values()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "alpha": signal.main.tolist()}


def owl(model: str, ids: str) -> dict[str, Any]:
    """OWL's statistic of every block."""
    from refimpl.scoring.base_signals import signals_of

    ready, tokens = refimpl.read_model(model), id_tokens(ids)
    start = time.perf_counter()
    found = signals_of(ready, refimpl.Request(base="owl", correct=None), tokens)
    return {"seconds": time.perf_counter() - start, "percent": found["owl"].main.tolist()}


def allocation(model: str, ids: str, base: str) -> dict[str, Any]:
    """The sparsities of a base, without an experiment."""
    from refimpl.allocation.allocate import base_only
    from refimpl.scoring.base_signals import signals_of

    ready, tokens = refimpl.read_model(model), id_tokens(ids)
    request = refimpl.Request(base=base, correct=None)
    start = time.perf_counter()
    found = base_only(signals_of(ready, request, tokens), request, ready.config.linears)
    return {"seconds": time.perf_counter() - start, "sparsity": found.base_sparsity.tolist()}


def wanda(model: str, ids: str, out: str, sparsity: float) -> dict[str, Any]:
    """`refimpl prune` by Wanda, counted as the original does."""
    how = "--allocation uniform --pruner wanda --compat peer --force"
    return command(f"prune {model} -o {out} --tokens {ids} --sparsity {sparsity} {how}".split())


def linear(rows: int, columns: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A random weight in float32, and a Hessian of correlated inputs in float64."""
    random = np.random.default_rng(seed)
    mix = random.standard_normal((columns, columns), np.float32) / np.sqrt(columns)
    x = random.standard_normal((2 * columns, columns), np.float32) @ (np.eye(columns) + mix)
    x = x.astype(np.float32)
    outer = (x.T @ x).astype(np.float64)
    return 0.02 * random.standard_normal((rows, columns), np.float32), outer / len(x)


def sparsegpt(rows: int, columns: int, sparsity: float, out: str) -> dict[str, Any]:
    """SparseGPT of one linear in float64; what it left is written to a file."""
    from refimpl.pruners.sparsegpt import sparsegpt as prune

    weight, hessian = linear(rows, columns)
    count = round(sparsity * weight.size)
    start = time.perf_counter()
    done = prune(weight, hessian, count)
    seconds = time.perf_counter() - start
    np.savez(out, keep=done.keep, weight=done.weight)
    return {"seconds": seconds}


def forward(model: str, samples: int, tokens: int, repetitions: int) -> dict[str, Any]:
    """Tokens per second of the forward, a sequence on each core."""
    ready = refimpl.read_model(model)
    ids = random_tokens(ready.config.vocab_size, samples, tokens).ids

    def logits() -> Any:
        with Workers(None) as workers:
            return workers.map(lambda row: refimpl.forward(ready, [row]).logits[0], ids)

    return timed(logits, ids.size, repetitions)


def evaluation(model: str, ids: str, repetitions: int) -> dict[str, Any]:
    """Tokens per second of `refimpl.evaluate`, to the nats of every window."""
    ready, windows = refimpl.read_model(model), id_windows(ids)
    count = sum(len(row) - 1 for row in windows.ids)
    nats = lambda: refimpl.evaluate(ready, windows).perplexity.nats[None]  # noqa: E731
    return timed(nats, count, repetitions)


def timed(run: Callable[[], Any], tokens: int, repetitions: int) -> dict[str, Any]:
    """Median tokens per second of a run, after one that does not count."""
    run()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        last = run()
        seconds.append(time.perf_counter() - start)
    mean = float(np.mean(np.abs(np.asarray(last)[0, -1])))
    return {"rate": tokens / median(seconds), "seconds": median(seconds), "size": mean}
