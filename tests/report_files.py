"""Files of every kind for a report, and copies of them with something changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import FIXTURES
from program import ran

LLAMA, TEXT = FIXTURES / "llama", FIXTURES / "text.txt"
TOKENS = ("--text", TEXT, "--samples", 2, "--seq-len", 24)
PAPER = ("--correct", "absorption")
PRUNING = ("--perturbation", "pruning", "--correct", "divergence", "--base", "owl")
SCORES: dict[str, tuple[object, ...]] = {
    "sweep.json": (LLAMA, *TOKENS, "--eta", "0.01,0.1,1", "--base", "owl", *PAPER),
    "one.json": (LLAMA, "--samples", 1, "--seq-len", 12, *PAPER),
    "gemma3.json": (FIXTURES / "gemma3", "--tokens", "random", "--samples", 1, "--seq-len", 8),
    "perturbed.json": (LLAMA, *TOKENS, *PRUNING),
    "none.json": (LLAMA, "--samples", 2, "--seq-len", 8, "--correct", "none"),
}
PER_BLOCK = (
    *("linears", "sinks", "coefficient", "stderr", "left_out", "num_pruned", "linear_pruned"),
    *("base_sparsity", "corrected_sparsity", "linear_sparsity"),
)
EVERYTHING = (
    *("sweep.json", "dense/pruning.json", "eval-whole.json", "perturbed.json"),
    *("pattern/pruning.json", "eval-dense.json", "w.json"),
)


def report_files(folder: Path) -> dict[str, Path]:
    for name, words in SCORES.items():
        ran("score", *words, "-o", folder / name)
    allocation, pattern = ("--allocation", folder / "sweep.json"), ("--nm", "2:4")
    ran("prune", LLAMA, "-o", folder / "dense", *allocation, *TOKENS)
    ran("prune", LLAMA, "-o", folder / "pattern", *pattern, "--pruner", "magnitude")
    text = ("--text", TEXT, "--window", 32)
    for name, model in {"whole": LLAMA, "dense": folder / "dense"}.items():
        ran("eval", model, *text, "--windows", 4, "-o", folder / f"eval-{name}.json")
    ran("eval", LLAMA, *text, "--windows", 1, "-o", folder / "w.json")
    return {name: folder / name for name in {**SCORES, **dict.fromkeys(EVERYTHING)}}


def edited(path: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads(path.read_text())
    change(document)
    target.write_text(json.dumps(document))
    return target


def deeper(document: dict[str, Any], count: int, block: Callable[[int], dict[str, Any]]) -> None:
    """Make scores those of a model of so many blocks, each the last one with changed fields."""
    scores, (result,) = document["scores"], document["scores"]["sweep"]
    for signal in scores["signals"].values():
        signal["values"] = {name: x[-1:] * count for name, x in signal["values"].items()}
    for owner in (scores, result, *document["allocations"]):
        owner |= {x: owner[x][-1:] * count for x in PER_BLOCK if x in owner}
    changed = [block(i) for i in range(count)]
    for name in ("drift", "alignment"):
        rows = [x.get(name, [result[name][-1][-1]] * (count - i)) for i, x in enumerate(changed)]
        result[name] = [[None] * i + row for i, row in enumerate(rows)]
    if "coefficient" in changed[0]:
        result["coefficient"] = [x["coefficient"] for x in changed]


def one_block(document: dict[str, Any]) -> None:
    """Make scores those of a model with a single block, the last one."""
    deeper(document, 1, lambda _: {})
