"""Time and memory of pruning by Wanda, against the original's loop written plainly in torch.

    python tests/benchmarks/wanda_against_torch.py MODEL_DIR --text FILE [--repetitions 3]

Both read the model's folder, prune every linear of every block to one sparsity, and write a folder
of the dtype that was read. Both get the same ids and all cores; each run is a process of its own,
timed whole, start and imports included, and both alternate. The loop is the original's: the
model loaded whole by transformers, the inputs of the first block caught, and for each block a pass
with hooks that sum squares in float32, a sort of every row's scores, and a second pass through the
pruned block. The original holds weights and states in float16; on a CPU that may be slow, so the
loop is timed in float32, too. Tokenizer files are left away for it. Memory is the largest
resident one, mapped pages included (VmHWM). In the end both outputs' masks are compared, bit by
bit; `--compat peer`, the default, asks refimpl for the original's count per row. A weight whose
score lies within rounding of another's may go on one side only; later blocks are calibrated behind
it, so from the first difference on the masks drift apart, as they do between refimpl's own float32
and float64.
"""

import argparse
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from machine import clock

MIB = 1 << 20
SIDES = ("refimpl", "float32", "float64", "stored")


def peak_bytes() -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def with_refimpl(model: str, ids: str, out: str, sparsity: float, compat: str) -> dict[str, Any]:
    from refimpl.cli.main import main

    options = f"--sparsity {sparsity} --correct none --method wanda --compat {compat} --json"
    sys.argv = ["refimpl", "prune", model, "-o", out, "--tokens", ids, *options.split()]
    with redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as left:
            if left.code:
                raise
    run = json.loads(Path(out, "pruning.json").read_text("utf-8"))["run"]
    return {"inside": run["seconds"], "threads": run["threads"]}


def with_torch(model: str, ids: str, out: str, sparsity: float, dtype: str) -> dict[str, Any]:
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    start = clock()
    stored = AutoConfig.from_pretrained(model).dtype
    llm = AutoModelForCausalLM.from_pretrained(
        model, dtype=stored if dtype == "stored" else getattr(torch, dtype)
    ).eval()
    llm.config.use_cache = False
    blocks = llm.model.layers
    states, extra = first_inputs(llm, blocks[0], torch.from_numpy(np.load(ids)).long())

    def forward(block: Any) -> None:
        for j in range(len(states)):
            found = block(states[j : j + 1], **extra)
            after[j] = (found[0] if isinstance(found, tuple) else found).reshape(after[j].shape)

    def summing(row: Any) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            row.add_(x.norm(p=2, dim=0) ** 2 / len(states))

        return hook

    after = torch.zeros_like(states)
    with torch.no_grad():
        for block in blocks:
            linears = [m for m in block.modules() if isinstance(m, nn.Linear)]
            rows = [torch.zeros(linear.in_features) for linear in linears]
            hooks = [
                linear.register_forward_hook(summing(row))
                for linear, row in zip(linears, rows, strict=True)
            ]
            forward(block)
            for hook in hooks:
                hook.remove()
            for linear, row in zip(linears, rows, strict=True):
                weight = linear.weight.data
                score = weight.abs() * row.sqrt().reshape(1, -1)
                order = torch.sort(score, dim=-1, stable=True).indices
                gone = torch.zeros_like(score, dtype=torch.bool)
                gone.scatter_(1, order[:, : int(weight.shape[1] * sparsity)], True)
                weight[gone] = 0
            forward(block)
            states, after = after, states
    llm.to(stored).save_pretrained(out)
    return {"inside": clock() - start, "threads": torch.get_num_threads()}


def first_inputs(llm: Any, block: Any, ids: Any) -> tuple[Any, dict[str, Any]]:
    """Run the model until its first block: all samples' states there, and what else it is given."""
    import torch

    class Caught(Exception):
        """Nothing behind the first block is to run."""

    states, extra = [], {}

    def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        kwargs = dict(kwargs)
        states.append(args[0] if args else kwargs.pop("hidden_states"))
        extra.update(kwargs)
        raise Caught

    hook = block.register_forward_pre_hook(catch, with_kwargs=True)
    with torch.no_grad():
        for row in ids:
            try:
                llm(row[None])
            except Caught:
                continue
    hook.remove()
    return torch.cat(states), extra


def differing(model: str, ours: Path, theirs: Path) -> str:
    """Bits that differ between two masks: in all, where the first are, and in the last block."""
    from refimpl import read_model

    one, other = read_model(ours), read_model(theirs)
    counts, total = [], 0
    for i in range(one.config.num_blocks):
        a, b = one.block(i, "float32"), other.block(i, "float32")
        linears = [f"{name}.weight" for name in one.config.linear_shapes]
        counts.append(sum(np.count_nonzero((a[n] == 0) != (b[n] == 0)) for n in linears))
        total += sum(a[n].size for n in linears)
    if not any(counts):
        return f"0 of {total:,} bits"
    first = next(i for i, count in enumerate(counts) if count)
    where = f"none before block {first}, {counts[first]:,} in it, {counts[-1]:,} in the last"
    return f"{sum(counts):,} of {total:,} bits ({sum(counts) / total:.1%}): {where}"


def write_ids(given: argparse.Namespace, file: Path) -> str:
    """Write the ids that both sides get; returns what they are."""
    from refimpl import read_model
    from refimpl.tokens import random_tokens, text_tokens

    size = (given.samples, given.seq_len)
    if given.text is None:
        tokens = random_tokens(read_model(given.model).config.vocab_size, *size)
    else:
        tokens = text_tokens(given.text, Path(given.model, "tokenizer.json"), *size)
    np.save(file, tokens.ids)
    return tokens.source


def summary(values: list[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def one_side(given: argparse.Namespace) -> None:
    """Run one side in this process, and print what it took."""
    what = (given.model, given.ids, given.out, given.sparsity)
    if given.side == "refimpl":
        found = with_refimpl(*what, given.compat)
    else:
        found = with_torch(*what, given.side)
    print(json.dumps({**found, "peak": peak_bytes()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--text", help="text to cut samples from; random ids without it")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--compat", choices=("peer", "exact"), default="peer")
    parser.add_argument("--rivals", nargs="*", choices=SIDES[1:], default=["float32", "stored"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--scratch", help="folder for outputs; removed afterwards")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--ids", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        one_side(given)
        return
    sides, quiet = ["refimpl", *given.rivals], {**os.environ, "TQDM_DISABLE": "1"}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        ids = Path(scratch, "ids.npy")
        source = write_ids(given, ids)
        outs = {side: Path(scratch, side) for side in sides}
        for _ in range(given.repetitions):
            for side in sides:
                shutil.rmtree(outs[side], ignore_errors=True)
                hidden = ["--side", side, "--ids", str(ids), "--out", str(outs[side])]
                command = [sys.executable, __file__, *sys.argv[1:], *hidden]
                start = time.perf_counter()
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env=quiet
                )
                whole = time.perf_counter() - start
                runs[side].append({**json.loads(done.stdout.splitlines()[-1]), "whole": whole})
            last = {side: runs[side][-1] for side in sides}
            print(
                ", ".join(
                    f"{side} {run['whole']:.1f} s {run['peak'] / MIB:,.0f} MiB"
                    for side, run in last.items()
                ),
                flush=True,
            )
        masks = {side: differing(given.model, outs["refimpl"], outs[side]) for side in given.rivals}
    report(given, source, runs, masks)


def report(
    given: argparse.Namespace,
    source: str,
    runs: dict[str, list[dict[str, Any]]],
    masks: dict[str, str],
) -> None:
    """Print medians and spreads of times, memory and their ratios, and how the masks agree."""
    packages = ("numpy", "torch", "transformers")
    print(
        f"{Path(given.model).name}, wanda {given.sparsity}, {given.samples} x {given.seq_len} "
        f"tokens: {source}\n"
        f"python {platform.python_version()}, {', '.join(f'{p} {version(p)}' for p in packages)}, "
        f"{os.cpu_count()} cores; median of {given.repetitions} (lowest to highest)"
    )
    ours = runs["refimpl"]
    for side, theirs in runs.items():
        name = f"refimpl, compat {given.compat}" if side == "refimpl" else f"torch, {side}"
        print(
            f"{name}: {summary([r['whole'] for r in theirs], 1)} s whole, "
            f"{summary([r['inside'] for r in theirs], 1)} s without start and imports, peak "
            f"{summary([r['peak'] / MIB for r in theirs], 0)} MiB, {theirs[0]['threads']} threads"
        )
        if side == "refimpl":
            continue
        pairs = list(zip(ours, theirs, strict=True))
        ratios = {key: [b[key] / a[key] for a, b in pairs] for key in ("whole", "inside", "peak")}
        print(
            f"  torch / refimpl: time {summary(ratios['whole'], 2)}, without start and imports "
            f"{summary(ratios['inside'], 2)}, memory {summary(ratios['peak'], 2)}; masks differ "
            f"in {masks[side]}"
        )


if __name__ == "__main__":
    main()
