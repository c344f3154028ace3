"""The rows of the table: what is run against what, at which sizes, and what it must reach."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from compileall import compile_dir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import shapes
from figure import Figure, ratios, spread
from process import Found, alternate, column, run
from shapes import Shape

from refimpl.loading.samples import random_tokens
from refimpl.running.threads import cores

LLAMA = Path(__file__).parents[3] / "fixtures" / "llama"
MB = 1e6
GIGA = 1e9


@dataclass(frozen=True)
class Setting:
    """Where the rows are measured, and how large; without `models` all are random."""

    scratch: Path
    models: Path | None
    quick: bool = False
    repetitions: int = 3
    only: tuple[str, ...] = ()

    def folder(self, shape: Shape) -> str:
        return str(shapes.model_folder(shape, self.scratch, self.models))

    def pick(
        self, full: list[tuple[Shape, int, int]]
    ) -> Iterator[tuple[Shape, dict[str, Any], str]]:
        """The shapes asked for, or a tiny one: with model, samples and tokens, and in words."""
        for shape, samples, tokens in [(shapes.TINY, 2, 32)] if self.quick else full:
            if self.quick or not self.only or shape.name in self.only:
                size = {"model": self.folder(shape), "samples": samples, "tokens": tokens}
                yield shape, size, said(shape.name, samples, tokens)

    def ids(self, shape: Shape, samples: int, tokens: int) -> str:
        """A file of random ids."""
        path = self.scratch / f"{shape.vocab}-{samples}-{tokens}.npy"
        np.save(path, random_tokens(shape.vocab, samples, tokens).ids)
        return str(path)


Row = Callable[[Setting], Iterator[Figure]]


def said(model: str, samples: int, tokens: int) -> str:
    """A model and its input in words."""
    return f"{model}, {samples} x {tokens} tokens"


def same_coefficients(ours: list[Found], theirs: list[Found]) -> str:
    """How far the coefficients of two sides are apart; their noise is drawn differently."""
    apart = np.abs(np.array(ours[-1]["r"]) / np.array(theirs[-1]["r"]) - 1)
    return (
        f"the coefficients of half the blocks differ by at most {np.median(apart):.1%}, of all by "
        f"{apart.max():.1%} (the noise differs)"
    )


def against(
    row: str, what: str, where: str, rival: str, found: Iterable[list[Found]],
    key: str = "seconds", unit: str = "s", scale: float = 1.0, **more: Any,
) -> Figure:  # fmt: skip
    """One number of ours and of theirs: how many times as much theirs is (of a rate: ours)."""
    ours, theirs = (tuple(x / scale for x in column(side, key)) for side in found)
    values = ratios(ours, theirs) if key == "rate" else ratios(theirs, ours)
    return Figure(row, what, where, rival, unit, ours, theirs, values, **more)


SIZES = ((shapes.SMOL, 1, 256), (shapes.QWEN, 1, 256), (shapes.LLAMA_1B, 1, 256))  # of scoring


def scoring(
    s: Setting,
    row: str,
    rivals: Mapping[str, tuple[str, dict[str, Any]]],
    goal: float,
    sizes: Sequence[tuple[Shape, int, int]] = SIZES,
) -> Iterator[Figure]:
    """Scoring against rivals: their words, their function and what else it takes."""
    for _, given, where in s.pick(list(sizes)):
        sides = {"ours": ("ours.score", given)} | {
            words: (side, given | more) for words, (side, more) in rivals.items()
        }
        found = alternate(sides, s.repetitions)
        for words in rivals:
            pair = found["ours"], found[words]
            yield against(
                row, "scoring, time", where, words, pair, goal=goal,
                note=f"{same_coefficients(*pair)}; {peaks({'ours': pair[0], words: pair[1]})}",
            )  # fmt: skip


def peaks(found: Mapping[str, list[Found]]) -> str:
    """The largest memory of each side, in words."""
    each = (f"{max(column(runs, 'peak')) / MB:,.0f} MB" for runs in found.values())
    return f"largest memory, ours first: {', '.join(each)}"


def scoring_hooked(s: Setting) -> Iterator[Figure]:
    """Scoring against one hooked full forward per block; of short sequences the whole process."""
    hooked = "torch, one hooked full forward per block"
    for _, given, where in s.pick([(shapes.SMOL, 2, 128)]):
        sides = {"ours": ("ours.score_command", given), "rival": ("rivals.score_hooked", given)}
        found = alternate(sides, s.repetitions)
        yield against(
            "scoring-hooked", "scoring, whole process", where, f"{hooked}, model in memory",
            (found["ours"], found["rival"]), goal=2.5, note=peaks(found),
        )  # fmt: skip
    sizes = [*SIZES, (shapes.SMOL, 2, 512)]
    yield from scoring(s, "scoring-hooked", {hooked: ("rivals.score_hooked", {})}, 2.5, sizes)


def scoring_batched(s: Setting) -> Iterator[Figure]:
    """Scoring against torch with the same sharing and batching, with two kinds of attention."""
    kinds = {"products": "attention as products", "fused": "fused attention"}
    rivals = {
        f"torch, same sharing and batching, {words}": ("rivals.score_batched", {"attention": kind})
        for kind, words in kinds.items()
    }
    return scoring(s, "scoring-batched", rivals, 1.3)


def rate(s: Setting) -> Iterator[Figure]:
    """Operations per second of scoring against NumPy's float32 matrix product."""
    sizes = [*SIZES, (shapes.SMOL, 1, 512)]
    goals = {shapes.SMOL: 0.75, shapes.LLAMA_1B: 0.85}
    for shape, given, where in s.pick(sizes):
        found = run("ours.score_between_products", **given, repetitions=s.repetitions)
        work = shapes.score_operations(shape, given["samples"], given["tokens"])
        kinds = (
            ("seconds", "rates", "all threads, wall-clock time", goals.get(shape)),
            ("processor", "core_rates", "one thread, both per processor second", None),
        )
        for seconds, rates, how, goal in kinds:
            ours = tuple(work / t / GIGA for t in found[seconds])
            theirs = tuple(r / GIGA for r in found[rates])
            yield Figure(
                "rate", "scoring, arithmetic rate", where,
                f"NumPy's float32 product of 4096 x 4096 by 4096 x 4096, {how}", "GFLOP/s", ours,
                theirs, ratios(ours, theirs), goal=goal, note=f"{work / 1e12:.3g} TFLOP counted",
            )  # fmt: skip


def memory(s: Setting) -> Iterator[Figure]:
    """Largest resident memory of `refimpl score`, and how it grows with depth."""
    shape = replace(shapes.TINY, blocks=16) if s.quick else shapes.LLAMA_1B
    tokens = 32 if s.quick else 256
    where = said(shape.name, 1, tokens)
    how = f"--perturbation gaussian --tokens random --samples 1 --seq-len {tokens}"
    peaks: dict[int, tuple[float, ...]] = {}
    for blocks in (4, 8, 16):
        size = replace(shape, blocks=blocks)
        words = f"score {s.folder(size)} {how}".split()
        found = [run("ours.command", arguments=words) for _ in range(1 if s.quick else 2)]
        peaks[blocks] = column(found, "peak")
    largest = tuple(x / GIGA for x in peaks[16])
    yield Figure(
        "memory", "scoring, peak resident memory", where,
        "bytes of the model file", "GB", largest, tuple(shape.file_bytes / GIGA for _ in largest),
        largest, "GB", 1.2, "at most",
    )  # fmt: skip
    growth = tuple((b - a) / MB for a, b in zip(peaks[4], peaks[16], strict=True))
    steps = ", ".join(f"{n} blocks {min(p) / MB:,.0f} MB" for n, p in peaks.items())
    allowed = 12 * 4 * tokens * shape.hidden / MB
    yield Figure(
        "memory", "scoring, growth of the peak from 4 to 16 blocks", where,
        "12 more residual states of T x D float32", "MB", growth, tuple(allowed for _ in growth),
        tuple(x / allowed for x in growth), goal=1.0, sense="at most", note=steps,
    )  # fmt: skip


def default(s: Setting) -> Iterator[Figure]:
    """`refimpl score` with its default samples and text: how long, and how sure it is."""
    for shape, given, _ in s.pick([(shapes.QWEN, 0, 0)]):
        if s.models is None or s.quick:  # it needs a tokenizer
            continue
        words = ["score", given["model"]]
        found = [run("ours.command", arguments=words) for _ in range(s.repetitions)]
        whole, scores = column(found, "whole"), found[-1]["printed"]["scores"]
        tokens, result = scores["tokens"], scores["sweep"][0]
        stderr, r = (np.array(result[name], np.float64) for name in ("stderr", "coefficient"))
        error = np.nanmedian(stderr / r)
        yield Figure(
            "default", "default `refimpl score --json`, whole process",
            said(shape.name, tokens["samples"], tokens["seq_len"]), "none", "s", whole, (), whole,
            "s", 90.0, "at most", "of the median block, the standard error of the coefficient is "
            f"{error:.1%} of it; {peaks({'ours': found})}",
        )  # fmt: skip


def spectra(s: Setting) -> Iterator[Figure]:
    """AlphaPruning's alphas against singular values and a Python loop."""
    sizes = [(shapes.TINY, 4)] if s.quick else [(shapes.SMOL, 6), (shapes.QWEN, 1)]
    for shape, blocks in sizes:
        given = {"model": s.folder(shape), "blocks": blocks}
        sides = {"ours": ("ours.spectra", given)} | {
            dtype: ("rivals.spectra", given | {"dtype": dtype}) for dtype in ("float32", "float64")
        }
        found = alternate(sides, s.repetitions)
        alphas = {side: np.array(found[side][-1]["alpha"]) for side in sides}
        where = f"{shape.name}, {blocks} blocks"
        for dtype in ("float32", "float64"):
            apart = np.abs(alphas["ours"] / alphas[dtype] - 1)
            yield against(
                "spectra", "AlphaPruning's spectra, time", where, f"the original in {dtype}",
                (found["ours"], found[dtype]), goal=3.0 if dtype == "float64" else None,
                note=f"{np.count_nonzero(apart > 1e-6)} of {apart.size} alphas differ by more "
                "than 1e-6",
            )  # fmt: skip
        apart = np.abs(alphas["ours"] / alphas["float64"] - 1)
        yield Figure(
            "spectra", "AlphaPruning's alphas, largest relative difference", where,
            "the original in float64", "", (), (), (float(apart.max()),), goal=1e-6,
            sense="at most",
        )  # fmt: skip


def wanda(s: Setting) -> Iterator[Figure]:
    """OWL's statistic and pruning by Wanda against the originals' loops in float32."""
    for shape, size, where in s.pick([(shapes.SMOL, 4, 512), (shapes.BLOCK_7B, 2, 256)]):
        given = {"model": size["model"], "ids": s.ids(shape, size["samples"], size["tokens"])}
        kinds = (("OWL's statistic", "owl", 1.3), ("pruning by Wanda at 0.7", "wanda", 1.6))
        for what, side, faster in kinds:
            sides = {}
            for who in ("ours", "pruning_rivals"):
                more = {"sparsity": 0.7, "out": str(s.scratch / who)} if side == "wanda" else {}
                sides[who] = f"{who}.{side}", given | more
            found = alternate(sides, s.repetitions)
            note = ""
            if side == "owl":
                a, b = (np.array(runs[-1]["percent"]) for runs in found.values())
                note = f"statistics differ by at most {np.abs(a - b).max():.1e} percentage points"
            for kind, number, goal in (
                ("time", {}, faster), ("memory", {"key": "peak", "scale": MB, "unit": "MB"}, 4.0)
            ):  # fmt: skip
                yield against(
                    "wanda", f"{what}, {kind}", where, "the original's loop, torch, float32",
                    found.values(), **number, goal=goal, note=note,
                )  # fmt: skip
    for shape, size, where in s.pick([(shapes.SMOL, 16, 512)]):
        ids = s.ids(shape, size["samples"], size["tokens"])
        for base, name in (("owl", "OWL"), ("alphapruning", "AlphaPruning")):
            given = {"model": size["model"], "ids": ids, "base": base}
            found = [run("ours.allocation", **given) for _ in range(s.repetitions)]
            seconds = column(found, "seconds")
            yield Figure(
                "wanda", f"allocation by {name}, no experiment", where, "none", "s", seconds, (),
                seconds, "s", 40.0, "at most",
            )  # fmt: skip


def sparsegpt(s: Setting) -> Iterator[Figure]:
    """SparseGPT of one linear against the original in float32, and the errors of both."""
    sizes = [(96, 256)] if s.quick else [(4096, 4096), (11008, 4096)]
    for rows, columns in sizes:
        both = ("ours", "pruning_rivals")
        outs = {who: str(s.scratch / f"sparsegpt-{who}.npz") for who in both}
        given = {"rows": rows, "columns": columns, "sparsity": 0.5}
        sides = {who: (f"{who}.sparsegpt", given | {"out": out}) for who, out in outs.items()}
        found = alternate(sides, s.repetitions if rows == columns else 1)
        where = f"a linear of {rows} x {columns}, sparsity 0.5"
        yield against(
            "sparsegpt", "SparseGPT, time", where, "the original's algorithm in float32",
            found.values(), goal=1.6 if rows == columns else 1.2,
        )  # fmt: skip
        if rows > columns:  # the errors of one are enough
            continue
        far = run(
            "pruning_rivals.sparsegpt_errors", rows=rows, columns=columns, outs=list(outs.values())
        )
        yield Figure(
            "sparsegpt", "SparseGPT, relative error of the new weights", where,
            "the original's algorithm in float64, at the same decision", "",
            (far["errors"][0],), (far["errors"][1],), (far["errors"][0],), goal=1e-10,
            sense="at most", note="theirs is the original in float32",
        )  # fmt: skip


def forward(s: Setting) -> Iterator[Figure]:
    """Tokens per second to the logits, and to the nats of windows, against two runtimes."""
    sizes = [(shapes.SMOL, 2, 512), (shapes.QWEN, 1, 256), (shapes.BLOCK_7B, 2, 256)]
    turns = 1 if s.quick else 2
    for shape, size, where in s.pick(sizes):
        given = size | {"repetitions": turns}
        graph = {"out": str(s.scratch / f"{shape.hidden}.onnx")}
        sides = {
            "ours": ("ours.forward", given),
            "transformers": ("rivals.forward", given),
            "onnxruntime": ("rivals.graph", given | graph),
        }
        found = alternate(sides, s.repetitions)
        for rival, goal in (("transformers", 1.2), ("onnxruntime", None)):
            yield against(
                "forward", "forward to the logits, rate", where, f"{rival}, float32",
                (found["ours"], found[rival]), "rate", "tokens/s", goal=goal,
                note="weights in memory on both sides" if goal else "",
            )  # fmt: skip
        ids = s.ids(shape, size["samples"], size["tokens"] + 1)
        given = {"model": size["model"], "repetitions": turns, "ids": ids}
        sides = {who: (f"{who}.evaluation", given) for who in ("ours", "rivals")}
        yield against(
            "forward", "evaluation of windows, rate", where, "transformers, float32",
            alternate(sides, s.repetitions).values(), "rate", "tokens/s", goal=1.0,
            note="weights in memory on both sides",
        )  # fmt: skip


def startup(s: Setting) -> Iterator[Figure]:
    """How long the program takes to say hello, and what it pulls in."""
    commands = {
        "refimpl --help": (["-m", "refimpl", "--help"], 0.3),
        "refimpl score fixtures/llama": (["-m", "refimpl", "score", str(LLAMA)], 0.6),
        "import refimpl": (["-c", "import refimpl"], 0.25),
        "python": (["-c", "pass"], None),
    }
    compile_dir(LLAMA.parents[1] / "refimpl", quiet=1)  # as pip does
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(3 if s.quick else 9):
        for name, (words, _) in commands.items():
            times[name].append(spent([sys.executable, *words], s.scratch))
    theirs, _ = zip(*times.pop("python"), strict=True)
    for name, pairs in times.items():
        ours, clock = zip(*pairs, strict=True)
        yield Figure(
            "startup", name, "processor time, including the interpreter", "python itself", "s",
            ours, theirs, ours, "s", commands[name][1], "at most",
            f"wall-clock time {spread(clock, 's')}",
        )  # fmt: skip
    words = ("onnx", "tokenizers", "rich", "torch", "onnxruntime")
    code = f"import refimpl, sys; print(*[w for w in {words} if w in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=s.scratch
    ).stdout.split()
    yield Figure(
        "startup", "packages pulled in by import refimpl", ", ".join(words), "none", "",
        (), (), (float(len(found)),), goal=0.0, sense="at most", note=", ".join(found),
    )  # fmt: skip


def spent(command: list[str], folder: Path) -> tuple[float, float]:
    """Processor and elapsed seconds of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"failed: {command}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start


def growth(s: Setting) -> Iterator[Figure]:
    """Exponents of the time of scoring in each size, against those of the counted operations."""
    base = replace(shapes.TINY, vocab=256) if s.quick else shapes.SMALL
    unit, usual = base.hidden // base.heads, 16 if s.quick else 128
    first = {"blocks": 4, "tokens": usual, "width": 64 if s.quick else 256, "samples": 1}
    doubled = (1, 2) if s.quick else (1, 2, 4, 8)
    axes = {axis: [start * k for k in doubled] for axis, start in first.items()}
    if cores() > 1:
        axes["cores"] = [1, 2]
    for axis, sizes in axes.items():
        made = [base] * len(sizes)
        if axis == "blocks":
            made = [replace(base, blocks=size) for size in sizes]
        if axis == "width":
            heads = [max(1, size // unit) for size in sizes]
            made = [
                replace(base, hidden=size, intermediate=3 * size, heads=n, kv_heads=n)
                for size, n in zip(sizes, heads, strict=True)
            ]
        tokens = sizes if axis == "tokens" else [usual] * len(sizes)
        samples = sizes if axis == "samples" else [4 if axis == "cores" else 1] * len(sizes)
        threads = sizes if axis == "cores" else [None] * len(sizes)
        found = run(
            "ours.score_of_sizes", models=[s.folder(shape) for shape in made], samples=samples,
            tokens=tokens, threads=threads, repetitions=1 if s.quick else 3,
        )  # fmt: skip
        work = [
            shapes.score_operations(*size) / (among or 1)
            for *size, among in zip(made, samples, tokens, threads, strict=True)
        ]
        measured, formula = exponent(sizes, found["seconds"]), exponent(sizes, work)
        yield Figure(
            "growth", f"scoring, exponent of the time in {axis}",
            f"{', '.join(map(str, sizes))} {axis}",
            f"the exponent of the counted operations{' per core' * (axis == 'cores')}", "",
            (measured,), (formula,), (measured - formula,), goal=0.15, sense="at most",
            note="seconds " + ", ".join(f"{t:.3g}" for t in found["seconds"]),
        )  # fmt: skip


def seven(s: Setting) -> Iterator[Figure]:
    """Memory of scoring and pruning a random model of seven billion weights, on 28 GB of disk."""
    shape = shapes.TINY if s.quick else shapes.LLAMA_7B
    model = f"{s.folder(shape)} --tokens random --samples 1 --seq-len 16"
    how = f"-o {s.scratch / 'pruned'} --sparsity 0.5 --allocation uniform"
    for name, words in (("score", model), ("prune", f"{model} {how}")):
        found = run("ours.command", arguments=[name, *words.split()])
        peak = (found["peak"] / GIGA,)
        yield Figure(
            "seven", f"`refimpl {name}`, peak resident memory", said(shape.name, 1, 16), "none",
            "GB", peak, (), peak, "GB", 4.0, "at most",
            f"`refimpl {name}` took {found['whole']:,.0f} s, its start included",
        )  # fmt: skip


def exponent(sizes: list[int], values: list[float]) -> float:
    """Slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


ROWS: Mapping[str, Row] = {
    "scoring-hooked": scoring_hooked,
    "scoring-batched": scoring_batched,
    "rate": rate,
    "default": default,
    "memory": memory,
    "spectra": spectra,
    "wanda": wanda,
    "sparsegpt": sparsegpt,
    "forward": forward,
    "startup": startup,
    "growth": growth,
    "seven": seven,
}
