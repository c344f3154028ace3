"""refimpl beside one rival on a real model: the figures of docs/results/.

    python tests/tools/benchmarks/compare.py hooked MODEL [--samples 2] [--attention sdpa]
    python tests/tools/benchmarks/compare.py wanda MODEL --text FILE
    python tests/tools/benchmarks/compare.py onnxruntime MODEL [OPTIONS OF SCORE]

Both sides take turns, each run in a process of its own. Peaks are the largest resident memory of a
process, mapped pages included; "whole" counts its start and imports, too.

- hooked: `refimpl.score` against one hooked forward of transformers per block, loading not counted;
- wanda: `refimpl prune` against the original's loop in torch, in float32 and in the stored dtype.
  A weight whose score lies within rounding of another's may go on one side only; later blocks are
  calibrated behind it, so from the first difference on the masks drift apart;
- onnxruntime: `refimpl score` by onnxruntime against NumPy, on the same noise.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import machine
import numpy as np
from figure import Figure, line
from process import Found, alternate
from rows import against, said, same_coefficients

from refimpl import read_model
from refimpl.tokens import random_tokens, text_tokens

MIB = float(1 << 20)
PEAK = {"key": "peak", "unit": "MiB", "scale": MIB}
FIELDS = ("coefficient", "drift", "alignment")


def hooked(given: argparse.Namespace, options: list[str]) -> Iterator[Figure]:
    """Scoring against hooked forwards."""
    size = {"model": given.model, "samples": given.samples, "tokens": given.seq_len}
    how = {"attention": given.attention, "rival": given.rival}
    sides = {"ours": ("ours.score", size), "torch": ("rivals.score_hooked", size | how)}
    found = alternate(sides, given.repetitions).values()
    yield against(
        "hooked", "scoring, time", said(Path(given.model).name, given.samples, given.seq_len),
        f"torch, rival {given.rival}, {given.attention} attention", found,
        note=same_coefficients(*found),
    )  # fmt: skip


def wanda(given: argparse.Namespace, options: list[str]) -> Iterator[Figure]:
    """Pruning by Wanda against the original's loop."""
    with TemporaryDirectory(dir=given.scratch) as scratch:
        where, ids = Path(given.model).name, str(Path(scratch, "ids.npy"))
        size = (given.samples, given.seq_len)
        if given.text is None:
            tokens = random_tokens(read_model(given.model).config.vocab_size, *size)
        else:
            tokens = text_tokens(given.text, Path(given.model, "tokenizer.json"), *size)
        np.save(ids, tokens.ids)
        outs = {side: str(Path(scratch, side)) for side in ("refimpl", *given.rivals)}
        what = {"model": given.model, "ids": ids, "sparsity": given.sparsity}
        sides = {
            side: ("pruning_rivals.wanda", what | {"out": out, "dtype": side})
            for side, out in outs.items()
        } | {"refimpl": ("ours.wanda", what | {"out": outs["refimpl"], "compat": given.compat})}
        found = alternate(sides, given.repetitions)
        print(f"Wanda, sparsity {given.sparsity}, compat {given.compat}: {tokens.source}")
        for side in given.rivals:
            note = f"masks differ in {differing(outs['refimpl'], outs[side])}"
            for kind, number in (
                ("whole time", {"key": "whole"}), ("time", {"note": note}), ("peak", PEAK)
            ):  # fmt: skip
                pair = found["refimpl"], found[side]
                yield against("wanda", kind, said(where, *size), f"torch, {side}", pair, **number)


def differing(ours: str, theirs: str) -> str:
    """Bits that differ between two masks: in all, where the first are, and in the last block."""
    one, other = read_model(ours), read_model(theirs)
    counts, total = [], int(one.config.block_sizes.sum())
    for i in range(one.config.num_blocks):
        a, b = one.block(i, "float32"), other.block(i, "float32")
        linears = [f"{name}.weight" for name in one.config.linears[i]]
        counts.append(sum(np.count_nonzero((a[n] == 0) != (b[n] == 0)) for n in linears))
    first = next((i for i, count in enumerate(counts) if count), None)
    if first is None:
        return f"0 of {total:,} bits"
    where = f"none before block {first}, {counts[first]:,} in it, {counts[-1]:,} in the last"
    return f"{sum(counts):,} of {total:,} bits ({sum(counts) / total:.1%}): {where}"


def onnxruntime(given: argparse.Namespace, options: list[str]) -> Iterator[Figure]:
    """Scoring by onnxruntime against NumPy."""
    sides = {
        runtime: (
            "ours.command",
            {"arguments": ["score", given.model, "--runtime", runtime, *options]},
        )
        for runtime in ("numpy", "onnxruntime")
    }
    found = alternate(sides, given.repetitions)
    ours, theirs = (runs[-1]["printed"]["scores"] for runs in found.values())
    run = theirs["run"]
    where = f"{Path(given.model).name}, {theirs['tokens']['source']}"
    rival = f"onnxruntime, {run['dtype']}, {run['threads']} threads, on {run['device']}"
    for kind, number in (("time", {}), ("processor time", {"key": "cpu"}), ("peak", PEAK)):
        yield against("onnxruntime", f"scoring, {kind}", where, rival, found.values(), **number)
    for mine, other in zip(ours["sweep"], theirs["sweep"], strict=True):
        apart = ", ".join(f"{field} {worst(mine, other, field):.1e}" for field in FIELDS)
        print(f"worst relative difference at eta {mine['eta']:g}: {apart}")


def worst(ours: Found, theirs: Found, field: str) -> float:
    """Largest relative difference of a field at one eta."""
    a, b = (np.array(one[field], np.float64) for one in (ours, theirs))
    return float(np.nanmax(np.abs(a - b) / np.abs(a)))


def main() -> None:
    """Compare, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(required=True)
    for kind, samples in ((hooked, 1), (wanda, 16), (onnxruntime, None)):
        option = kinds.add_parser(kind.__name__, allow_abbrev=False).add_argument
        option("model")
        option("--repetitions", type=int, default=3)
        if samples is not None:  # the program's own options for onnxruntime
            option("--samples", type=int, default=samples)
            option("--seq-len", type=int, default=512)
        if kind is hooked:
            option("--rival", choices=("full", "body"), default="full")
            option("--attention", choices=("eager", "sdpa"), default="eager")
        if kind is wanda:
            option("--text", help="text to cut samples from; random ids without it")
            option("--sparsity", type=float, default=0.7)
            option("--compat", choices=("peer", "exact"), default="peer")
            option("--rivals", nargs="*", default=["float32", "stored"], help="dtypes of torch")
            option("--scratch", help="where a temporary folder is made")
        kinds.choices[kind.__name__].set_defaults(kind=kind)
    given, options = parser.parse_known_args()
    if options and given.kind is not onnxruntime:
        parser.error(f"unknown: {' '.join(options)}")
    facts: dict[str, Any] = machine.machine()
    versions = (f"{name} {number}" for name, number in facts["packages"].items() if number)
    print(f"{facts['cpu']}, {facts['cores']} cores, {', '.join(versions)}", flush=True)
    for figure in given.kind(given, options):
        print(line(figure), flush=True)


if __name__ == "__main__":
    main()
