"""Score and prune a random 7B model within 4 GB of resident memory.

    python tests/tools/benchmarks/seven_b.py [--tokens 16] [--scratch FOLDER] [-o seven_b.json]

A bfloat16 model of Llama-7B's shape (13.5 GB, seven shards) is written in a temporary folder,
scored on one short sequence, pruned by Wanda to 0.5 into a second folder, and both are removed.
Memory is the largest resident one of each command, mapped pages included (VmHWM). `--quick` takes a
tiny model in its place.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import machine
import shapes
from process import run

LIMIT = 4e9  # bytes


def seven_b(scratch: Path, shape: shapes.Shape, tokens: int, sparsity: float) -> dict[str, Any]:
    """Make, score, prune; times in seconds, memory in bytes."""
    model, start = scratch / shape.name, time.perf_counter()
    shapes.write_model(model, shape)
    found: dict[str, Any] = {
        "shape": shape.name,
        "bytes": sum(file.stat().st_size for file in model.iterdir()),
        "files": len(list(model.glob("*.safetensors"))),
        "tokens": tokens, "sparsity": sparsity, "limit": LIMIT,
        "made": time.perf_counter() - start,
    }  # fmt: skip
    print(f"made {found['bytes'] / 1e9:.2f} GB in {found['made']:.0f} s", flush=True)
    size = f"--samples 1 --seq-len {tokens}"
    how = f"--sparsity {sparsity} --allocation uniform"
    for name, words in {
        "score": f"score {model} {size}",
        "prune": f"prune {model} -o {scratch / 'pruned'} {size} {how}",
    }.items():
        before = machine.load()
        done = run("ours.command", arguments=words.split())
        command = f"refimpl {words}".replace(str(scratch), "FOLDER")
        found[name] = {key: done[key] for key in ("seconds", "whole", "peak")}
        found[name] |= {"load": [before, machine.load()], "command": command}
        verdict = "within" if done["peak"] <= LIMIT else "more than"
        print(
            f"{name}: {done['whole']:.0f} s, peak {done['peak'] / 1e9:.2f} GB, {verdict} "
            f"{LIMIT / 1e9:.0f} GB",
            flush=True,
        )
    record = done["printed"]
    found["pruned"], found["weights"] = record["total_pruned"], record["total_weights"]
    print(f"pruned {found['pruned']:,} of {found['weights']:,} weights", flush=True)
    return found


def main() -> None:
    """Run it, and remove the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--scratch", help="where a temporary folder of 28 GB is made")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    shape = replace(shapes.TINY, name="tiny") if given.quick else shapes.LLAMA_7B
    with TemporaryDirectory(dir=given.scratch) as scratch:
        found = seven_b(Path(scratch), shape, given.tokens, given.sparsity)
    found["machine"] = machine.machine()
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n")
    if max(found[name]["peak"] for name in ("score", "prune")) > LIMIT:
        sys.exit(1)


if __name__ == "__main__":
    main()
