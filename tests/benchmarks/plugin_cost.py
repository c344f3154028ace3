"""What pytest's plugin costs a run that does not use it: one empty test, with it and without.

    python tests/benchmarks/plugin_cost.py

The runs alternate; without it is with ``-p no:refimpl``.
"""

import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

RUNS = 40
WORDS = {"with": (), "without": ("-p", "no:refimpl")}


def cost(folder: Path, *words: str) -> tuple[float, float]:
    """Milliseconds of the clock, and of the processor, that one run of pytest takes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e3 * (end - start), 1e3 * busy


with TemporaryDirectory() as name:
    (Path(name) / "test_nothing.py").write_text("def test_nothing(): pass\n")
    found: dict[str, list[tuple[float, float]]] = {which: [] for which in WORDS}
    for run in range(-2, RUNS):
        for which in sorted(WORDS, reverse=run % 2 == 0):
            taken = cost(Path(name), *WORDS[which])
            if run >= 0:
                found[which].append(taken)
    for i, clock in enumerate(("clock", "processor")):
        one, other = ([x[i] for x in found[which]] for which in WORDS)
        more = median(a - b for a, b in zip(one, other, strict=True))
        print(f"{clock}: {median(one):.0f} ms, without {median(other):.0f} ms, more {more:.1f} ms")
