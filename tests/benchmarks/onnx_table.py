"""The tables of docs/results/onnx.md.

    python tests/benchmarks/onnx_table.py families
    python tests/benchmarks/onnx_table.py sparse --real FOLDER
    python tests/benchmarks/onnx_table.py real --real FOLDER [--windows 4]
    python tests/benchmarks/onnx_table.py memory --real FOLDER

The first needs this repository only; the others the models and the text that
docs/how-to/real-models.md describes, and room for copies of them in the temporary folder. `real`
needs torch and transformers.
"""

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime

from refimpl import Pattern, Pruner, forward, prune, read_model
from refimpl.comparison.agreement import worst_token
from refimpl.evaluation.evaluate import evaluate
from refimpl.onnx.export import export
from refimpl.onnx.session import open_session
from refimpl.onnx.validate import validate
from refimpl.onnx.zero_weights import count_zeros
from refimpl.tokens import text_windows

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"
FAMILIES = (
    "gemma2", "gemma3", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3",
)  # fmt: skip
SMOL = "SmolLM2-135M-Instruct"
MODELS = (SMOL, "gemma-3-270m", "Qwen2.5-Coder-0.5B-Instruct")
WINDOW, REPEATS = 512, 3
MB = 1e6
LEVELS = {
    "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL", "none": "ORT_DISABLE_ALL",
}  # fmt: skip


def row(*cells: object) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*cells: str) -> None:
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)


def families() -> None:
    """Worst token of all trace points and shapes, from one file per model and dtype."""
    kinds = ("dense", "pruned")
    columns = [f"{kind} {dtype}" for dtype in ("float32", "float64") for kind in kinds]
    runtimes = ("onnxruntime", "onnx-reference")
    short = {"float32": "f32", "float64": "f64", "onnxruntime": "ort", "onnx-reference": "ref"}
    titles = [f"{column} {runtime}" for column in columns for runtime in runtimes]
    header("family", *(" ".join(short.get(w, w) for w in title.split()) for title in titles))
    for case in FAMILIES:
        cells = []
        with TemporaryDirectory() as name:
            half = Path(name, "half")
            prune(read_model(FIXTURES / case), half, Pattern(2, 4), Pruner("magnitude"))
            for column in columns:
                kind, dtype = column.split()
                model = read_model(half if kind == "pruned" else FIXTURES / case)
                path = Path(name, f"{kind}-{dtype}.onnx")
                made = export(model, path, dtype=dtype, outputs="trace")
                size = model.config.block_size * model.config.num_blocks
                assert int(made.metadata["prunable_zeros"]) == (size // 2 if "p" in kind else 0)
                for runtime in runtimes:
                    found = validate(model, graph=path, against=runtime, threads=1)
                    shapes = [one.shape for one in found.comparisons]
                    assert found.agrees
                    assert shapes == [(1, 5), (3, 13), (3, 1)], shapes
                    worst = max(p.error for one in found.comparisons for p in one.points)
                    cells.append(f"{worst:.1e}")
        row(case, *cells)


def sparse(real: Path) -> None:
    """Sizes of a pruned model's graph with and without its zeros, and the zeros in it."""
    header(
        "sparsity", "zeros requested", "zeros in the graph", "dense, MB", "--sparse auto, MB",
        "sparse tensors",
    )  # fmt: skip
    for sparsity in ("0.5", "0.7", "0.9"):
        with TemporaryDirectory() as name:
            folder = Path(name, "pruned")
            words = ("--sparsity", sparsity, "--method", "magnitude", "--correct", "none")
            command = [sys.executable, "-m", "refimpl", "prune", str(real / SMOL), "-o"]
            subprocess.run([*command, str(folder), *words], check=True, capture_output=True)
            record = json.loads((folder / "pruning.json").read_text("utf-8"))
            model, sizes = read_model(folder), {}
            for kind in (False, True):
                path = Path(name, f"{kind}.onnx")
                made = export(model, path, sparse=kind)
                sizes[kind] = made.graph_bytes + made.data_bytes
                proto = onnx.load(path, load_external_data=False)
                zeros = count_zeros(model, proto, path.parent)
                assert zeros.agree
            row(
                sparsity, f"{record['total_requested']:,}", f"{zeros.graph:,}",
                f"{sizes[False] / MB:,.1f}", f"{sizes[True] / MB:,.1f}",
                f"{made.sparse} of {made.tensors}",
            )  # fmt: skip


def referenced(real: Path, name: str, folder: str) -> Path:
    """A copy of a model, with a graph that refers to it beside it."""
    copy = Path(folder, name)
    shutil.copytree(real / name, copy)
    return export(read_model(copy), weights="reference").graph


def nats_of(logits: Any, ids: Any) -> float:
    """Summed negative log likelihood of every token but the first, in float64."""
    x = logits[0, :-1].astype(np.float64)
    x -= x.max(-1, keepdims=True)
    chosen = np.take_along_axis(x, ids[0, 1:, None], -1)[:, 0]
    return float((np.log(np.exp(x).sum(-1)) - chosen).sum())


def worst_logits(model: Any, run: Callable[[Any], Any], ids: Any) -> list[str]:
    """The worst token's error of every pair of three computations of the same logits."""
    from refimpl.onnx.peer import peer_session

    theirs, _ = peer_session(model, np.float32, "cpu")
    graph, ours, peer = run(ids), forward(model, ids).logits, theirs(ids)["logits"]
    pairs = (graph, ours), (graph, peer), (ours, peer)
    return [f"{worst_token(actual, expected)[0]:.1e}" for actual, expected in pairs]


def real_models(real: Path, windows: int) -> None:
    """Graphs by reference on real text: sizes, logits, perplexity, and speed, side by side."""
    text = real / "text" / "sotu-1980-on.txt"
    sizes, logits, quality, speed = [], [], [], []
    for name in MODELS:
        with TemporaryDirectory() as folder:
            path = referenced(real, name, folder)
            model = read_model(path.parent)
            weights = sum(file.path.stat().st_size for file in model.files)
            sizes.append((name, f"{path.stat().st_size:,}", f"{weights:,}"))
            cut = text_windows(text, model.folder / "tokenizer.json", WINDOW, windows)
            rows = [np.asarray(ids)[None] for ids in cut.ids]
            session = open_session(path, "cpu")

            def by_graph(ids: Any, run: Any = session.run) -> Any:
                return run({"token_ids": ids})["logits"]

            logits.append((name, *worst_logits(model, by_graph, rows[0])))

            def graph_nats(rows: Any = rows, by_graph: Any = by_graph) -> float:
                return sum(nats_of(by_graph(ids), ids) for ids in rows)

            def numpy_nats(model: Any = model, cut: Any = cut) -> float:
                return float(evaluate(model, cut).perplexity.nats.sum())

            sides = {"onnxruntime": graph_nats, "NumPy": numpy_nats}
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            found = {}
            for repeat in range(REPEATS):
                for side in sides if repeat % 2 else reversed(sides):
                    start = time.perf_counter()
                    found[side] = sides[side]()
                    seconds[side].append(time.perf_counter() - start)
            predicted = sum(len(ids) - 1 for ids in cut.ids)
            values = [float(np.exp(found[side] / predicted)) for side in sides]
            apart = abs(values[0] / values[1] - 1)
            assert apart < 1e-4, apart
            quality.append((name, *(f"{value:.6f}" for value in values), f"{apart:.1e}"))
            rates = [sorted(windows * WINDOW / t for t in seconds[side]) for side in sides]
            speed.append(
                (
                    name,
                    *(f"{statistics.median(r):,.0f} ({r[0]:,.0f} to {r[-1]:,.0f})" for r in rates),
                )
            )
    print()
    header("model", "graph, bytes", "referenced weights, bytes")
    for cells in sizes:
        row(*cells)
    print()
    header("model", "onnxruntime, NumPy", "onnxruntime, transformers", "NumPy, transformers")
    for cells in logits:
        row(*cells)
    print()
    header("model", "perplexity, onnxruntime", "perplexity, NumPy", "relative difference")
    for cells in quality:
        row(*cells)
    print()
    header("model", "onnxruntime, tokens per second", "NumPy, tokens per second")
    for cells in speed:
        row(*cells)


def memory(real: Path) -> None:
    """What onnxruntime holds of a model after loading its graph, in processes of their own."""
    header(
        "model", "weights", "optimisation", "graph and weights, MB", "held after loading, MB",
        "peak while loading, MB", "held after a run, MB", "load, s", "tokens per second",
    )  # fmt: skip
    for name in MODELS:
        with TemporaryDirectory() as folder:
            path = referenced(real, name, folder)
            model = read_model(path.parent)
            stored = sum(file.path.stat().st_size for file in model.files)
            made = export(model, Path(folder, "copied.onnx"))
            graphs = {
                "reference": (path, stored + path.stat().st_size),
                "external": (made.graph, made.graph_bytes + made.data_bytes),
            }
            for weights, (graph, size) in graphs.items():
                for level in LEVELS if name == SMOL else ("basic",):
                    command = [sys.executable, __file__, "load", "--graph", str(graph)]
                    done = subprocess.run(
                        [*command, "--level", level], check=True, capture_output=True, text=True
                    )
                    found = json.loads(done.stdout)
                    row(
                        name, weights, level, f"{size / MB:,.0f}", f"{found['held'] / MB:,.0f}",
                        f"{found['peak'] / MB:,.0f}", f"{found['after'] / MB:,.0f}",
                        f"{found['seconds']:.1f}",
                        f"{found['rate']:,.0f}",
                    )  # fmt: skip


def load(graph: Path, level: str) -> None:
    """Load a graph, in this process; print what it holds afterwards as JSON."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    before, start = status("VmRSS"), time.perf_counter()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    held, peak = status("VmRSS") - before, status("VmHWM") - before
    ids, rates = np.arange(1, WINDOW + 1)[None], []
    for _ in range(3):
        start = time.perf_counter()
        session.run(["logits"], {"token_ids": ids})
        rates.append(WINDOW / (time.perf_counter() - start))
    after = status("VmRSS") - before
    found = {"held": held, "peak": peak, "after": after, "seconds": seconds, "rate": max(rates)}
    print(json.dumps(found))


def status(key: str) -> int:
    """Bytes, as the kernel says of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def versions(*names: str) -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for name in names:
        module = __import__(name)
        yield f"{name} {module.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=("families", "sparse", "real", "memory", "load"))
    parser.add_argument("--real", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--graph", type=Path)
    parser.add_argument("--level", choices=LEVELS, default="basic")
    given = parser.parse_args()
    if given.table == "load":
        load(given.graph, given.level)
        return
    more = ("torch", "transformers") if given.table == "real" else ()
    print(", ".join(versions("numpy", "onnx", "onnxruntime", "refimpl", *more)) + "\n")
    if given.table == "families":
        families()
        return
    if given.real is None:
        parser.error(f"{given.table} needs --real FOLDER")
    if given.table == "real":
        real_models(given.real, given.windows)
    else:
        {"sparse": sparse, "memory": memory}[given.table](given.real)


if __name__ == "__main__":
    main()
