"""Score a model by NumPy and by onnxruntime, on the same noise: whether they agree, and their time.

    python tests/benchmarks/score_by_onnxruntime.py MODEL [--repetitions 3] [OPTIONS OF SCORE]

Each run is `refimpl score MODEL --json` in a process of its own, and both runtimes alternate. Time
is what the run says about itself, reading the weights and building the graph included, start and
imports not; processor time is of the whole process, and says more on a machine that is shared.
Memory is the largest resident one, mapped pages included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

MIB = 1 << 20
RUNTIMES = ("numpy", "onnxruntime")


def scored(model: str, runtime: str, options: list[str]) -> dict[str, Any]:
    """One run: its scores.json, and the processor time of its process."""
    command = ["-m", "refimpl", "score", model, "--runtime", runtime, "--json", *options]
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"refimpl score failed: {command}")
    return json.loads(printed) | {"processor": used.ru_utime + used.ru_stime}


def worst(ours: dict[str, Any], theirs: dict[str, Any], field: str) -> float:
    """Largest relative difference of a field of the blocks at one eta."""
    a, b = (np.hstack([block[field] for block in one["blocks"]]) for one in (ours, theirs))
    return float(np.max(np.abs(a - b) / np.abs(a)))


def summary(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--repetitions", type=int, default=3)
    given, options = parser.parse_known_args()
    runs: dict[str, list[dict[str, Any]]] = {runtime: [] for runtime in RUNTIMES}
    for _ in range(given.repetitions):
        for runtime, done in runs.items():
            done.append(scored(given.model, runtime, options))
            last = done[-1]
            print(
                f"{runtime} {last['run']['seconds']:.1f} s, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    (ours, *_), (theirs, *_) = runs.values()
    run = theirs["run"]
    print(
        f"{Path(given.model).name}, {theirs['tokens']['source']}, {run['dtype']}, {run['threads']} "
        f"threads, on {run['device']}; "
        f"{', '.join(f'{name} {number}' for name, number in run['versions'].items())}\n"
        f"median of {given.repetitions} (lowest to highest)"
    )
    for runtime, done in runs.items():
        print(
            f"{runtime}: {summary([one['run']['seconds'] for one in done], 1)} s, processor "
            f"{summary([one['processor'] for one in done], 1)} s, peak "
            f"{summary([one['run']['peak_memory'] / MIB for one in done], 0)} MiB"
        )
    pairs = list(zip(*runs.values(), strict=True))
    times = [b["run"]["seconds"] / a["run"]["seconds"] for a, b in pairs]
    works = [b["processor"] / a["processor"] for a, b in pairs]
    print(f"onnxruntime / numpy: time {summary(times, 2)}, processor {summary(works, 2)}")
    fields = ("absorption_coefficient", "drift", "alignment")
    sweeps = (one.get("sweep", [one]) for one in (ours, theirs))
    for mine, other in zip(*sweeps, strict=True):
        found = (f"{field} {worst(mine, other, field):.1e}" for field in fields)
        print(f"worst relative difference at eta {mine['eta']:g}: {', '.join(found)}")


if __name__ == "__main__":
    main()
