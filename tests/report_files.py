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
    "perturbed.json": (LLAMA, *TOKENS, *PRUNING),
}
EVERYTHING = (
    "sweep.json",
    "eval-whole.json",
    "perturbed.json",
    "eval-dense.json",
    "w.json",
)


def report_files(folder: Path) -> dict[str, Path]:
    for name, words in SCORES.items():
        ran("score", *words, "-o", folder / name)
    allocation = ("--allocation", folder / "sweep.json")
    ran("prune", LLAMA, "-o", folder / "dense", *allocation, *TOKENS)
    text = ("--text", TEXT, "--window", 32)
    for name, model in {"whole": LLAMA, "dense": folder / "dense"}.items():
        ran("eval", model, *text, "--windows", 4, "-o", folder / f"eval-{name}.json")
    ran("eval", LLAMA, *text, "--windows", 1, "-o", folder / "w.json")
    return {
        name: folder / name for name in {*SCORES, *EVERYTHING, "dense/pruning.json"}
    }


def edited(
    path: Path, target: Path, change: Callable[[dict[str, Any]], object]
) -> Path:
    document = json.loads(path.read_text())
    change(document)
    target.write_text(json.dumps(document))
    return target
