"""Where the time of scoring goes: a timer around every step, in a run on one worker thread.

Each step's functions are replaced, wherever refimpl's modules hold them, by ones that add up the
processor time of their thread without that of the steps inside them. The share of time in which
workers wait is from a second run, on all threads, by the clock.
"""

import functools
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import shapes
from ours import gemm_rate
from process import run
from rows import LLAMA, Setting, spent
from threadpoolctl import threadpool_limits

STEPS: Mapping[str, tuple[str, ...]] = {
    "matrix products of the linears": ("model.ops.linear",),
    "attention": ("model.kernels.tile_of_attention",),
    "attention: rotation": ("model.attention.rotate",),
    "norms": ("model.ops.rms_norm", "model.ops.layer_norm"),
    "activation": ("model.ops.ACTIVATIONS",),
    "rest of the block: gate, sums, copies of heads": ("model.forward.block",),
    "sums of squares of the linears' inputs": ("model.stream.sum_of_squares",),
    "noise": ("method.perturbation.noise", "method.perturbation.perturbed"),
    "drift and alignment": ("method.perturbation.deviation",),
    "reading weights: cast and check": ("model.weight.Weight.read", "model.weight.Weight.check"),
}
WAITING = "waiting (share of all threads)"
OTHER = "other"
PARTS: Mapping[str, tuple[str, ...]] = {
    "products of the linears": ("matrix products of the linears",),
    "attention: products, mask, softmax": ("attention",),
    "elementwise: norms, rotation, activation, gate, sums, noise, drift": (
        "attention: rotation",
        "norms",
        "activation",
        "rest of the block: gate, sums, copies of heads",
        "sums of squares of the linears' inputs",
        "noise",
        "drift and alignment",
    ),
    "reading weights: cast and check": ("reading weights: cast and check",),
    OTHER: (OTHER,),
}


class Timers:
    """Exclusive time per step, over all threads."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds = clock, defaultdict(float)
        self.in_workers = 0.0
        self._local, self._lock = threading.local(), threading.Lock()

    def around(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed; what is timed inside it is taken off."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inside = getattr(self._local, "inside", None)
            self._local.inside, start = 0.0, self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                took = self.clock() - start
                own, self._local.inside = took - self._local.inside, None
                if inside is not None:
                    self._local.inside = inside + took
                with self._lock:
                    self.seconds[step] += own
                    if inside is None and threading.current_thread() is not _MAIN:
                        self.in_workers += took

        return timed


_MAIN = threading.main_thread()


def install(timers: Timers) -> None:
    """Put timers around all steps, wherever they are held."""
    import refimpl
    import refimpl.scoring.score
    from refimpl.model import kernels

    modules = [m for name, m in sys.modules.items() if name.startswith("refimpl")]
    for step, names in STEPS.items():
        for name in names:
            holder: Any = refimpl
            *path, last = name.split(".")
            for part in path:
                holder = getattr(holder, part)
            held = getattr(holder, last)
            if last == "ACTIVATIONS":
                continue  # below: scoring's are in pieces, and calls per piece would cost much
            timed = timers.around(step, held)
            setattr(holder, last, timed)
            for module in modules:
                for key, value in vars(module).items():
                    if value is held:
                        setattr(module, key, timed)
    for kind in (kernels.PLAIN, kernels.TILED):  # frozen, and holding functions
        replace = functools.partial(object.__setattr__, kind)
        replace("rms_norm", timers.around("norms", kind.rms_norm))
        replace("rotate", timers.around("attention: rotation", kind.rotate))
        acts = {k: timers.around("activation", f) for k, f in kind.activations.items()}
        replace("activations", acts)


def measure(model: str, samples: int, tokens: int, threads: int | None) -> dict[str, Any]:
    """Score with timers in this process: processor time on one thread, the clock on several."""
    import refimpl
    from refimpl.loading.samples import random_tokens
    from refimpl.running.threads import Workers

    ready = refimpl.read_model(model)
    given = random_tokens(ready.config.vocab_size, samples, tokens)
    noise, few = refimpl.Noise(), random_tokens(ready.config.vocab_size, 1, 8)
    refimpl.score(ready, few, noise, threads=threads)  # warm
    timers = Timers(time.thread_time if threads == 1 else time.perf_counter)
    install(timers)
    start, processor = time.perf_counter(), time.process_time()
    refimpl.score(ready, given, noise, threads=threads, bases=())
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    workers = Workers(threads).threads
    with threadpool_limits(1, user_api="blas"):
        rates = gemm_rate(2, time.thread_time)
    return {
        "rate": max(rates),
        "wall": wall,
        "processor": processor,
        "steps": dict(timers.seconds),
        "waiting": max(0.0, 1 - timers.in_workers / (workers * wall)),
        "threads": workers,
    }


def profiles(setting: Setting) -> Iterator[dict[str, Any]]:
    """Shares of the steps at two shapes, and what bounds them."""
    score = [sys.executable, "-m", "refimpl", "score", str(LLAMA)]
    start, _ = min(spent(score, setting.scratch) for _ in range(3))
    for shape, given, where in setting.pick([(shapes.SMOL, 1, 512), (shapes.LLAMA_1B, 1, 256)]):
        alone = run("scoring_profile.measure", **given, threads=1)
        together = run("scoring_profile.measure", **given, threads=None)
        total = alone["processor"]
        steps = {step: alone["steps"].get(step, 0.0) / total for step in STEPS}
        steps[OTHER] = max(0.0, 1 - sum(steps.values()))
        yield {
            "shape": where,
            "seconds": total,
            "steps": steps,
            "waiting": together["waiting"],
            "threads": together["threads"],
            "wall": together["wall"],
            "operations": shapes.score_operations(shape, given["samples"], given["tokens"]),
            "rate": alone["rate"],
            "start": start,
        }


def roofline(profile: dict[str, Any]) -> dict[str, float]:
    """Seconds of one thread by part, the products alone at the machine's rate before them.

    After them are the seconds in which all threads together wait, and the start of the program.
    """
    total = profile["seconds"]
    parts = {part: total * sum(profile["steps"][s] for s in some) for part, some in PARTS.items()}
    return {
        "counted operations at the rate of NumPy's product": profile["operations"]
        / profile["rate"],
        **parts,
        "scoring, all of it": total,
        f"waiting, {profile['threads']} threads": profile["waiting"]
        * profile["threads"]
        * profile["wall"],
        "start of the program": profile["start"],
    }


def line(profile: dict[str, Any]) -> str:
    """A profile in a few lines of the terminal."""
    steps = [f"  {share:6.1%}  {step}" for step, share in profile["steps"].items()]
    head = f"profile: {profile['shape']}, {profile['seconds']:.1f} s of one processor"
    return "\n".join([head, *steps, f"  {profile['waiting']:6.1%}  {WAITING}"])
