"""How much the coefficients, and allocations made of them, depend on the number of samples.

    python tests/tools/benchmarks/sample_counts.py MODEL TEXT --samples 16 --seq-len 256

Each of the samples is scored once. Groups of 1, 2, 4, ... of them, spread over the text, are then
what a run with so few samples would give, and the spread of the groups is the error of such a run:
the root mean square over groups and blocks, times sqrt(G / (G - 1)) for G groups. The error of all
samples together is that of half of them over sqrt(2).
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from figure import markdown

import refimpl
from refimpl.allocation.allocate import allocate
from refimpl.method.perturbation import Noise
from refimpl.model.model import Model
from refimpl.model.statistics import add_sums
from refimpl.running.settings import Settings
from refimpl.scoring.experiment import experiment
from refimpl.scoring.measurements import Measurements
from refimpl.tokens import Tokens, text_tokens

BASES = ("uniform", "owl")


def each_alone(model: Model, tokens: Tokens, threads: int) -> Iterator[Measurements]:
    """What the experiment measures of every sample, each with noise of its own."""
    with Settings(threads=threads).open(model) as resources:
        for n, row in enumerate(tokens.ids):
            yield experiment(model, row[None], Noise(seed=n), resources)


def together(some: Sequence[Measurements]) -> Measurements:
    """The measurements of samples as one experiment's."""
    joined = {
        name: np.concatenate([getattr(one, name) for one in some], axis=1)
        for name in ("drift", "alignment", "ratios")
    }
    left_out, sinks = (sum(getattr(one, name) for one in some) for name in ("left_out", "sinks"))
    squares: tuple[dict[str, Any], ...] = tuple({} for _ in some[0].squares)
    for one in some:
        for total, sums in zip(squares, one.squares, strict=True):
            add_sums(total, sums)
    return replace(some[0], **joined, left_out=left_out, sinks=sinks, squares=squares)


def results(
    model: Model, tokens: Tokens, alone: Sequence[Measurements], chosen: slice
) -> dict[str, np.ndarray]:
    """What some of the samples give: log r, its standard error, and allocations in percent, [L]."""
    measured = together(alone[chosen])
    given = replace(tokens, ids=tokens.ids[chosen])
    scores = refimpl.score(model, given, runtime=lambda *_, **__: measured, threads=1)
    (sweep,) = scores.sweep
    found = {"log r": sweep.logarithm, "stderr": sweep.stderr / sweep.coefficient}
    for base in BASES:
        found[base] = 100 * allocate(scores, base=base, sparsity=0.7).corrected_sparsity
    return found


def spread(groups: Sequence[np.ndarray]) -> tuple[float, float]:
    """Root mean square over groups and blocks, and that of the worst block."""
    squares = np.var(np.stack(groups), axis=0, ddof=1)
    return float(np.sqrt(squares.mean())), float(np.sqrt(squares.max()))


def main() -> None:
    """Score the samples, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--samples", type=int, default=16, help="a power of two")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    model = refimpl.read_model(given.model)
    size = given.samples, given.seq_len
    tokens = text_tokens(given.text, given.model / "tokenizer.json", *size)
    alone = list(each_alone(model, tokens, given.threads))
    rows, count = [], 1
    while count < given.samples:
        step = given.samples // count
        groups = [results(model, tokens, alone, slice(k, None, step)) for k in range(step)]
        errors = {key: spread([g[key] for g in groups]) for key in ("log r", *BASES)}
        stderr = np.mean([g["stderr"][:-1] for g in groups])  # of the last block r is 1
        cells = [f"{x:.3g}" for key in errors for x in errors[key]]
        rows.append((count, given.seq_len, step, f"{stderr:.3g}", *cells))
        count *= 2
    every = results(model, tokens, alone, slice(None))
    print(f"{given.model.name}: {tokens.source}")
    heads = ["samples", "tokens of each", "groups", "mean stderr of r / r"]
    heads += [f"{key}, {what}" for key in errors for what in ("error", "worst block")]
    print(markdown(heads, rows))
    print(f"all: stderr of r / r {np.mean(every['stderr'][:-1]):.3g}")
    for key in ("log r", *BASES):
        print(key, " ".join(f"{x:.4g}" for x in every[key]))


if __name__ == "__main__":
    main()
