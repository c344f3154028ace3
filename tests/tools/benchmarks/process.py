"""Sides of a comparison in processes of their own, taking turns.

    process.py ours.score '{"model": "FOLDER", "samples": 1, "tokens": 64}'

A side is a function of a module in this folder; what it returns is printed as JSON, with the
largest resident memory of its process, unless it has measured that.
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import machine

Found = dict[str, Any]


def run(side: str, **arguments: Any) -> Found:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, side, json.dumps(arguments)]
    with tempfile.TemporaryFile("w+") as errors:  # shown where it fails, quiet where it does not
        quiet = {**os.environ, "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=quiet)
        whole = time.perf_counter() - start
        errors.seek(0)
        if done.returncode:
            raise SystemExit(f"{side} {arguments} failed:\n{errors.read()}")
    return {**json.loads(done.stdout.splitlines()[-1]), "whole": whole}


def alternate(
    sides: Mapping[str, tuple[str, dict[str, Any]]], repetitions: int
) -> dict[str, list[Found]]:
    """Run all sides, by name, once per repetition, every other time from the last to the first."""
    found: dict[str, list[Found]] = {name: [] for name in sides}
    for turn in range(repetitions):
        for name in sides if turn % 2 == 0 else reversed(sides):
            side, arguments = sides[name]
            found[name].append(run(side, **arguments))
            print(f"  {name}: {brief(found[name][-1])}", file=sys.stderr, flush=True)
    return found


def brief(found: Found) -> str:
    """What a side found, for whoever waits."""
    short = {k: v for k, v in found.items() if isinstance(v, int | float)}
    return ", ".join(f"{key} {value:.4g}" for key, value in short.items())


def column(found: list[Found], key: str) -> tuple[float, ...]:
    """One number of every repetition."""
    return tuple(float(one[key]) for one in found)


def main() -> None:
    """Run the side that the command line names, in this process."""
    name, text = sys.argv[1:]
    module, function = name.split(".")
    found = getattr(importlib.import_module(module), function)(**json.loads(text))
    print(json.dumps({"peak": machine.memory_of("VmHWM"), **found}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
