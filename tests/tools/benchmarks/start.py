"""Processor time that commands take to start, of two checkouts, taking turns.

    python tests/tools/benchmarks/start.py OLD NEW [--repetitions 11]

Both run under this Python, from their folders, byte-compiled before. The time is that of the user
and the system, of a command and its processes; a ratio is that of the medians.
"""

import argparse
import compileall
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

COMMANDS = {
    "refimpl score fixtures/llama": ["-m", "refimpl", "score", "fixtures/llama"],
    "import refimpl": ["-c", "import refimpl"],
    "import refimpl.api": ["-c", "import refimpl.api"],
    "refimpl --help": ["-m", "refimpl", "--help"],
}


def processor_time(checkout: Path, words: list[str]) -> float:
    """Seconds of the user and the system that a command takes in a checkout."""
    before = os.times()
    subprocess.run(
        [sys.executable, *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def main() -> None:
    """Print a row per command: seconds of both, and their ratio."""
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("old", type=Path, help="a checkout")
    parser.add_argument("new", type=Path, help="another one")
    parser.add_argument("--repetitions", type=int, default=11)
    options = parser.parse_args()
    checkouts = options.old.resolve(), options.new.resolve()
    for checkout in checkouts:
        compileall.compile_dir(checkout / "refimpl", quiet=2)
    print("| what | old | new | new / old |\n|---|---|---|---|")
    for name, words in COMMANDS.items():
        seconds: tuple[list[float], list[float]] = [], []
        for turn in range(options.repetitions):
            for side in (0, 1) if turn % 2 == 0 else (1, 0):
                seconds[side].append(processor_time(checkouts[side], words))
        old, new = map(median, seconds)
        print(f"| `{name}` | {old:.2f} s | {new:.2f} s | {new / old:.2f} |", flush=True)


if __name__ == "__main__":
    main()
