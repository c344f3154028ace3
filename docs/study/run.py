"""Run the study: `python docs/study/run.py --real DIR`, resumable; results go to `cells.jsonl`.

DIR holds the models and texts that docs/how-to/real-models.md says how to get. Every cell prunes a
model block by block and passes the texts through each pruned block at once, which gives the same
numbers as `refimpl prune` and `refimpl eval`, without a file in between.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from effects import nats
from grid import Cell, Papers, best_two, first_half, papers, second_half
from measure import Bench, base_scores, logarithms, request_of

from refimpl import Model, __version__, read_model
from refimpl.allocation.allocate import base_allocation, linear_counts
from refimpl.allocation.targets import Targets
from refimpl.evaluation.batch import Batch, batches
from refimpl.evaluation.choices import DELIMITER
from refimpl.evaluation.encoding import encoder
from refimpl.evaluation.likelihood import Batches
from refimpl.method.correction import corrected
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruning.pruned_blocks import pruned_blocks
from refimpl.running.settings import Settings
from refimpl.tokens import text_windows
from refimpl.tokens.model_tokens import model_tokens

CALIBRATION = (4, 512)  # samples, tokens each
WINDOWS, WINDOW = 8, 512  # of each text, from its start
TEXTS = {"tuning": "austen-emma", "speech": "sotu-1980-on", "novel": "austen-persuasion"}
QUESTIONS = {"general_knowledge": 70, "goal_step_wikihow/goal_inference": 30}  # from the start
HERE = Path(__file__).parent


def questions(real: Path) -> list[tuple[str, list[str], int]]:
    """Question, choices and answer, from BIG-bench's files; choices are not listed beforehand."""
    found = []
    for name, count in QUESTIONS.items():
        examples = json.loads((real / "choices" / name / "task.json").read_text("utf-8"))
        for example in examples["examples"][:count]:
            scores = example["target_scores"]
            right = max(scores, key=lambda choice: scores[choice])
            found.append((example["input"].rstrip(), list(scores), list(scores).index(right)))
    return found


class Exam:
    """Everything a model is pruned and measured on, in batches.

    Args:
        bench: Where things are.
        model: The model, for its tokenizer.
        papers: Which texts, and whether there are questions.
    """

    def __init__(self, bench: Bench, model: Model, papers: Papers) -> None:
        encode, tokenizer = encoder(model), model.folder / "tokenizer.json"
        bos = model.config_file.get("bos_token_id")
        self.windows = {
            text: text_windows(
                bench.real / "text" / f"{file}.txt", tokenizer, WINDOW, WINDOWS, bos_id=bos
            )
            for text, file in TEXTS.items()
            if text in papers.texts
        }
        self.questions = questions(bench.real) if papers.questions else []
        sequences: list[tuple[npt.ArrayLike, int]] = [
            (ids, 1) for windows in self.windows.values() for ids in windows.ids
        ]
        for question, choices, _ in self.questions:
            for choice in choices:
                sequences.append(encode.fitted(*encode.pair(question, DELIMITER + choice)))
        ids, starts = zip(*sequences, strict=True)
        self.batches: list[Batch] = batches(ids, starts, model.config)
        self.calibration = model_tokens(model, bench.calibration, None, *CALIBRATION).ids

    def results(self, sums: npt.NDArray[np.float64]) -> dict[str, Any]:
        """What the summed log likelihoods of all sequences come to."""
        found: dict[str, Any] = {}
        at = 0
        for text, windows in self.windows.items():
            count = len(windows.ids)
            found[text] = [round(-float(x), 6) for x in sums[at : at + count]]
            found[f"{text}_tokens"] = [len(ids) - 1 for ids in windows.ids]
            at += count
        right, right_norm = "", ""
        for _, choices, answer in self.questions:
            mine = sums[at : at + len(choices)]
            right += str(int(mine.argmax() == answer))
            per_character = mine / [len(choice) for choice in choices]
            right_norm += str(int(per_character.argmax() == answer))
            at += len(choices)
        return {**found, "acc": right, "acc_norm": right_norm} if self.questions else found


def allocation(bench: Bench, model: Model, cell: Cell) -> dict[str, npt.NDArray[Any]]:
    """Base, u and corrected sparsity of every block, and the counts of every linear."""
    config, request, correction = model.config, request_of(cell), cell.correction
    sizes = config.linear_sizes
    signals = base_scores(bench, model, cell).signals
    base = base_allocation(signals, request, config.linears)
    u = np.zeros(config.num_blocks)
    if correction.quantity != "none":
        u = logarithms(bench, model, cell)
    if correction.change == "negative":
        u = -u
    elif correction.change:
        u = np.random.default_rng(int(correction.change.split()[1])).permutation(u)
    blocks = np.arange(config.num_blocks)
    size = 0.0 if correction.quantity == "none" else correction.size
    units, most = config.block_sizes, correction.size
    final = corrected(base, u, blocks, units, cell.sparsity, size, most, "max")
    return {"u": u, "sparsity": final, "counts": linear_counts(final, sizes, cell.sparsity)}


def run_cell(bench: Bench, model: Model, exam: Exam, cell: Cell) -> dict[str, Any]:
    """Prune and measure one cell."""
    made, started = allocation(bench, model, cell), time.perf_counter()
    counts = made["counts"]
    targets = Targets(counts, np.zeros(counts.shape), "exact", None, {})
    with Settings().open() as resources:
        stream = Batches(model, exam.batches, resources.workers)
        pruner = PrunerOptions(cell.method)
        for block in pruned_blocks(model, targets, pruner, exam.calibration, resources):
            stream.pass_block(block.weights)
        found = stream.likelihoods()
    sums = np.array([found[n].log_probabilities.sum() for n in range(len(found))])
    return {
        "cell": str(cell),
        **asdict(cell),
        "u": [round(float(x), 6) for x in made["u"]],
        "block_sparsity": [round(float(x), 6) for x in made["sparsity"]],
        "pruned": int(counts.sum()),
        **exam.results(sums),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {"refimpl": __version__, "numpy": np.__version__},
    }


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """Cells on file by name; a line that a kill has torn is cut off."""
    whole: list[str] = []
    if path.exists():
        whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        path.write_text("".join(whole))
    return {row["cell"]: row for row in map(json.loads, whole)}


def cells(done: Mapping[str, Mapping[str, Any]]) -> Iterator[Cell]:
    """All cells in order; the second half once the first one is on file."""
    first = list(first_half())
    yield from first
    if any(str(cell) not in done for cell in first):  # only some were wanted
        return
    best = best_two({cell: nats(done[str(cell)], "tuning") for cell in first})
    print("best two:", *best, sep="\n  ", flush=True)
    yield from second_half(best)


def run(bench: Bench, path: Path, wanted: Iterable[str] = ()) -> None:
    """Run what is not on file yet.

    Args:
        bench: Where things are.
        path: The file of cells.
        wanted: Only cells whose name holds one of these.
    """
    done, words = finished(path), tuple(wanted)
    model: Model | None = None
    exams = dict[Papers, Exam]()
    for cell in cells(done):
        name = str(cell)
        if name in done or (words and not any(word in name for word in words)):
            continue
        if model is None or model.folder.name != cell.model:
            model, exams = read_model(bench.real / cell.model), {}
        if papers(cell) not in exams:
            exams[papers(cell)] = Exam(bench, model, papers(cell))
        row = run_cell(bench, model, exams[papers(cell)], cell)
        done[name] = row
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        perplexity = np.exp(nats(row, "speech"))
        print(f"{len(done)}: {name}: {perplexity:.2f}, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="folder of models and texts")
    parser.add_argument("--scores", type=Path, required=True, help="folder that keeps scores")
    parser.add_argument("--cells", type=Path, default=HERE / "cells.jsonl", help="results")
    parser.add_argument("words", nargs="*", help="only cells whose name holds one of these")
    given = parser.parse_args()
    given.scores.mkdir(parents=True, exist_ok=True)
    run(Bench(given.real, given.scores), given.cells, given.words)
