"""What pytest's plugin costs a run that does not use it: one empty test, with it and without.

    python tests/tools/benchmarks/plugin_cost.py

The runs alternate; without it is with ``-p no:refimpl``.
"""

import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from rows import spent

RUNS = 40
WORDS = {"with": (), "without": ("-p", "no:refimpl")}


def main() -> None:
    """Run them, and print medians of both clocks and of their differences."""
    times: dict[str, list[tuple[float, float]]] = {which: [] for which in WORDS}
    with TemporaryDirectory() as folder:
        Path(folder, "test_nothing.py").write_text("def test_nothing(): pass\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        for turn in range(-2, RUNS):  # the first two do not count
            for which in sorted(WORDS, reverse=turn % 2 == 0):
                taken = spent([*command, *WORDS[which]], Path(folder))
                times[which] += [taken] * (turn >= 0)
    for i, clock in enumerate(("processor", "clock")):
        one, other = ([1e3 * taken[i] for taken in times[which]] for which in WORDS)
        more = median(a - b for a, b in zip(one, other, strict=True))
        print(f"{clock}: {median(one):.0f} ms, without {median(other):.0f} ms, more {more:.1f} ms")


if __name__ == "__main__":
    main()
