"""The tables of docs/results/onnx.md.

    python tests/tools/benchmarks/onnx_table.py families
    python tests/tools/benchmarks/onnx_table.py real --real FOLDER [--windows 4]
    python tests/tools/benchmarks/onnx_table.py memory --real FOLDER

The first needs this repository only; the others the models and the text that
docs/how-to/real-models.md describes, and room for copies of them in the temporary folder. `real`
needs torch and transformers.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
from figure import markdown, spread
from machine import machine, memory_of
from onnx.reference import ReferenceEvaluator
from process import run

from refimpl import Model, Pattern, PrunerOptions, forward, prune, read_model
from refimpl.comparison.agreement import worst_token
from refimpl.evaluation.evaluate import evaluate
from refimpl.onnx.export import export
from refimpl.onnx.recording.model_graph import TOKENS
from refimpl.onnx.session import open_session
from refimpl.tokens import random_tokens, text_windows

FIXTURES = Path(__file__).parents[3] / "fixtures"
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
Table = tuple[tuple[str, ...], list[tuple[object, ...]]]  # headings, rows


def families(given: argparse.Namespace) -> Iterator[Table]:
    """Worst token of all trace points and shapes, from one file per model and dtype."""
    runtimes = {"ort": onnxruntime.InferenceSession, "ref": ReferenceEvaluator}
    dtypes = {"f32": "float32", "f64": "float64"}
    columns = [(k, d, r) for d, k, r in product(dtypes, ("dense", "pruned"), runtimes)]
    rows: list[tuple[object, ...]] = []
    for case in FAMILIES:
        cells = []
        with TemporaryDirectory() as name:
            half = Path(name, "half")
            prune(read_model(FIXTURES / case), half, Pattern(2, 4), PrunerOptions("magnitude"))
            for kind, dtype, runtime in columns:
                model = read_model(half if kind == "pruned" else FIXTURES / case)
                path = Path(name, f"{kind}-{dtype}-{runtime}.onnx")
                made = export(model, path, dtype=dtypes[dtype], outputs="trace")
                size = int(model.config.block_sizes.sum())
                assert int(made.metadata["prunable_zeros"]) == size // 2 * (kind == "pruned")
                run_graph = runtimes[runtime](str(path)).run
                errors = []
                for samples, length in ((1, 5), (3, 13), (3, 1)):
                    tokens = random_tokens(model.config.vocab_size, samples, length)
                    right = forward(model, tokens.ids, trace=True, dtype=dtypes[dtype]).trace
                    arrays = zip(run_graph([*right], {TOKENS: tokens.ids}), right, strict=True)
                    errors += [worst_token(array, right[name])[0] for array, name in arrays]
                cells.append(f"{max(errors):.1e}")
        rows.append((case, *cells))
    yield ("family", *map(" ".join, columns)), rows


def nats_of(logits: Any, ids: Any) -> float:
    """Summed negative log likelihood of every token but the first, in float64."""
    x = logits[0, :-1].astype(np.float64)
    x -= x.max(-1, keepdims=True)
    chosen = np.take_along_axis(x, ids[0, 1:, None], -1)[:, 0]
    return float((np.log(np.exp(x).sum(-1)) - chosen).sum())


def worst_logits(model: Any, by_graph: Callable[[Any], Any], ids: Any) -> list[str]:
    """The worst token's error of every pair of three computations of the same logits."""
    sys.path.append(str(FIXTURES.parent / "tests"))
    from transformers_forward import transformers_forward

    theirs = transformers_forward(model, "float32")
    graph, ours, peer = by_graph(ids), forward(model, ids).logits, theirs(ids)["logits"]
    pairs = (graph, ours), (graph, peer), (ours, peer)
    return [f"{worst_token(actual, expected)[0]:.1e}" for actual, expected in pairs]


def one_model(model: Model, folder: str, text: Path, windows: int) -> list[list[str]]:
    """Of a graph on real text: its sizes, logits, perplexity and speed."""
    made = export(model, Path(folder, "model.onnx"))
    session = open_session(made.graph, "cpu")
    cut = text_windows(text, model.folder / "tokenizer.json", WINDOW, windows)
    rows = [np.asarray(ids)[None] for ids in cut.ids]

    def by_graph(ids: Any) -> Any:
        return session.run({"token_ids": ids})["logits"]

    sides: dict[str, Callable[[], float]] = {
        "onnxruntime": lambda: sum(nats_of(by_graph(ids), ids) for ids in rows),
        "NumPy": lambda: float(evaluate(model, cut).perplexity.nats.sum()),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    found = {}
    for repeat in range(REPEATS):
        for side in sides if repeat % 2 else reversed(sides):
            start = time.perf_counter()
            found[side] = sides[side]()
            rates[side].append(windows * WINDOW / (time.perf_counter() - start))
    predicted = sum(len(ids) - 1 for ids in cut.ids)
    values = [float(np.exp(found[side] / predicted)) for side in sides]
    apart = abs(values[0] / values[1] - 1)
    assert apart < 1e-4, apart
    return [
        [f"{made.graph_bytes:,}", f"{made.data_bytes:,}"],
        worst_logits(model, by_graph, rows[0]),
        [*(f"{value:.6f}" for value in values), f"{apart:.1e}"],
        [spread(rates[side]) for side in sides],
    ]


def real_models(given: argparse.Namespace) -> Iterator[Table]:
    """Graphs on real text, side by side with NumPy."""
    heads = (
        ("graph, bytes", "weights, bytes"),
        ("onnxruntime, NumPy", "onnxruntime, transformers", "NumPy, transformers"),
        ("perplexity, onnxruntime", "perplexity, NumPy", "relative difference"),
        ("onnxruntime, tokens per second", "NumPy, tokens per second"),
    )
    rows: list[list[tuple[object, ...]]] = [[] for _ in heads]
    for name in MODELS:
        with TemporaryDirectory() as folder:
            text = given.real / "text" / "sotu-1980-on.txt"
            found = one_model(read_model(given.real / name), folder, text, given.windows)
        for table, cells in zip(rows, found, strict=True):
            table.append((name, *cells))
    yield from ((("model", *head), table) for head, table in zip(heads, rows, strict=True))


def memory(given: argparse.Namespace) -> Iterator[Table]:
    """What onnxruntime holds of a model after loading its graph, in processes of their own."""
    rows: list[tuple[object, ...]] = []
    for name in MODELS:
        with TemporaryDirectory() as folder:
            made = export(read_model(given.real / name), Path(folder, "model.onnx"))
            for level in LEVELS if name == SMOL else ("basic",):
                found = run("onnx_table.load", graph=str(made.graph), level=level)
                size = made.graph_bytes + made.data_bytes
                held = (size, *(found[key] for key in ("held", "most", "after")))
                cells = (f"{number / MB:,.0f}" for number in held)
                speed = f"{found['seconds']:.1f}", f"{found['rate']:,.0f}"
                rows.append((name, level, *cells, *speed))
    yield (
        "model", "optimisation", "graph and weights, MB", "held after loading, MB",
        "peak while loading, MB", "held after a run, MB", "load, s", "tokens per second",
    ), rows  # fmt: skip


def load(graph: str, level: str) -> dict[str, float]:
    """Load a graph in this process: what it holds afterwards, in bytes, and its speed."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    before, start = memory_of("VmRSS"), time.perf_counter()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    seconds = time.perf_counter() - start
    held, most = memory_of("VmRSS") - before, memory_of("VmHWM") - before
    ids, rates = np.arange(1, WINDOW + 1)[None], []
    for _ in range(3):
        start = time.perf_counter()
        session.run(["logits"], {"token_ids": ids})
        rates.append(WINDOW / (time.perf_counter() - start))
    after = memory_of("VmRSS") - before
    return {"held": held, "most": most, "after": after, "seconds": seconds, "rate": max(rates)}


def main() -> None:
    tables = {"families": families, "real": real_models, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=tables)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--windows", type=int, default=4)
    given = parser.parse_args()
    if given.real is None and given.table != "families":
        parser.error(f"{given.table} needs --real FOLDER")
    facts = machine()
    packages = ", ".join(f"{name} {number}" for name, number in facts["packages"].items())
    print(f"Python {facts['python']}, {packages}")
    for heads, rows in tables[given.table](given):
        print(f"\n{markdown(heads, rows)}", flush=True)


if __name__ == "__main__":
    main()
