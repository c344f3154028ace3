"""Search for an allocation, as a yardstick: `python docs/study/search.py --real DIR`.

DIR is as for `run.py`. An evolutionary search in the manner of EvoPress (arXiv:2410.14649): every
block has a level of sparsity, and a mutation switches levels, one block a step up and another a
step down, so the budget holds. Fitness is the mean KL of the next-token distributions, on tokens of
the calibration text; each block is pruned with Wanda at its level, with statistics of the dense
model. Nothing is chosen on a reported text.

The budget is fixed before the run: a generation makes 16 offspring, of which the best 4 on one
sequence are compared with their parent on all 4 sequences of 256 tokens, beside the dense model's
states: 17 + 4 * 6 passes of each block. 40 generations are 1,640 passes of each block.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from effects import nats
from grid import REPORTED, SMOL, Papers
from measure import Bench
from measured import PROBED, PROBED_SAMPLES, Measured, calibration
from run import Exam

from refimpl import Model, RefimplError, __version__, read_model
from refimpl.allocation.allocate import linear_counts
from refimpl.allocation.targets import Targets
from refimpl.evaluation.likelihood import Batches
from refimpl.method.divergence import RunningDivergence
from refimpl.model.forward import head
from refimpl.model.stream import Stream
from refimpl.pruning.pruned_blocks import PrunerOptions, pruned_blocks
from refimpl.running.settings import Resources, Settings
from refimpl.scoring.dense_statistics import wanda_moments
from refimpl.scoring.experiment import dense_squares
from refimpl.scoring.pruned_alone import PrunedBlocks

HERE = Path(__file__).parent
STEP, STEPS = 0.05, 5  # of a level; levels on each side of the target
DENSE = -1  # in place of a level
PIECE = 8192  # ids whose logits are in memory at a time

Levels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Search:
    """How long it searches: offspring of each generation, those of them that all tokens see."""

    generations: int = 40
    offspring: int = 16
    survivors: int = 4
    seed: int = 0


class Fitness:
    """Mean KL of models whose blocks are pruned to levels, and the block passes that it took."""

    def __init__(
        self, model: Model, ids: npt.NDArray[np.int64], sparsity: float, resources: Resources
    ) -> None:
        sizes = model.config.linear_sizes
        if np.ptp(sizes.sum(axis=1)):
            raise RefimplError(
                "blocks of different sizes", "equal blocks, whose levels can be switched", "stop"
            )
        moments = wanda_moments(dense_squares(model, ids, resources), len(ids), model.config)
        levels = sparsity + STEP * np.arange(-STEPS, STEPS + 1)
        if levels.min() < 0 or levels.max() > 1:
            raise RefimplError(
                f"levels from {levels.min():g} to {levels.max():g}", "in [0, 1]", "change STEPS"
            )
        counts = np.rint(levels[:, None, None] * sizes).astype(np.int64)
        self.model, self.ids, self.levels, self.resources = model, ids, levels, resources
        self.prune = PrunedBlocks(model.config.linears, counts, PrunerOptions(), moments)
        self.passes = 0

    def __call__(self, candidates: Levels, sequences: Levels) -> npt.NDArray[np.float64]:
        """Mean KL of each candidate, [C], from its levels by block, [C, L], on some sequences."""
        model, workers, n = self.model, self.resources.workers, len(sequences)
        models = np.vstack([np.full_like(candidates[:1], DENSE), candidates])
        rows = {m * n + k: self.ids[s] for m in range(len(models)) for k, s in enumerate(sequences)}
        stream = Stream(model, rows, self.resources.dtype)
        for i in range(model.config.num_blocks):
            dense = model.block(i, self.resources.dtype)
            weights: dict[int, Any] = {
                level: self.prune(i, level, dense, workers)
                for level in sorted({*models[:, i].tolist()} - {DENSE})
            }
            weights[DENSE] = dense
            passes = [
                partial(stream.through, h, weights[int(models[key // n, i])])
                for key, h in stream.states.items()
            ]
            stream.advance(dict(zip(rows, workers.run(passes), strict=True)))
            self.passes += len(rows)
        return np.array([self._divergence(stream, key, n) for key in range(1, len(models))])

    def _divergence(self, stream: Stream, key: int, n: int) -> float:
        """Mean KL of one model's last states, from those of the dense one, which come first."""
        config, found = self.model.config, []
        for k in range(n):
            clean, state = stream.states[k], stream.states[key * n + k]
            running = RunningDivergence.start(clean.shape[1])
            for start in range(0, config.vocab_size, PIECE):
                weights = self.model.head(self.resources.dtype, slice(start, start + PIECE))
                logits = (head(h, weights, config)[0] for h in (clean, state))
                running = running.add(*logits)
            found.append(float(running.value.mean()))
        return float(np.mean(found))


def switched(parent: Levels, rng: np.random.Generator) -> Levels:
    """A mutation: once or twice, one block a step up and another a step down, within the levels."""
    child = parent.copy()
    for _ in range(int(rng.integers(1, 4, 2).min())):
        up, down = (rng.permutation(np.flatnonzero(x)) for x in (child < 2 * STEPS, child > 0))
        down = down[down != up[0]]
        child[[up[0], down[0]]] += (1, -1)
    return child


def search(fitness: Fitness, how: Search) -> Iterator[tuple[Levels, float, int]]:
    """The parent of each generation, its fitness on all sequences, and the block passes so far."""
    rng, everything = np.random.default_rng(how.seed), np.arange(len(fitness.ids))
    parent = np.full(fitness.model.config.num_blocks, STEPS)
    for _ in range(how.generations):
        children = np.array([switched(parent, rng) for _ in range(how.offspring)])
        one = rng.integers(len(everything), size=1)
        best = children[np.argsort(fitness(children, one), kind="stable")[: how.survivors]]
        final = np.vstack([parent, best])
        found = fitness(final, everything)
        parent = final[found.argmin()]
        yield parent, float(found.min()), fitness.passes


def run(bench: Bench, path: Path, cell: Measured, how: Search) -> None:
    """Search, prune and measure; a line of the same form as those of `measured.py`."""
    model, started = read_model(bench.real / cell.model), time.perf_counter()
    exam = Exam(bench, model, Papers(REPORTED, False))
    tokens = calibration(bench, model, cell)
    history = []
    with Settings().open() as resources:
        fitness = Fitness(model, tokens.ids[:PROBED_SAMPLES, :PROBED], cell.sparsity, resources)
        for parent, kl, passes in search(fitness, how):
            final = fitness.levels[parent]
            history.append([round(kl, 6), passes])
            print(f"generation {len(history)}: KL {kl:.4f}, {passes} block passes", flush=True)
        searched = time.perf_counter()
        counts = linear_counts(final, model.config.linear_sizes, cell.sparsity)
        targets = Targets(counts, np.zeros(counts.shape), "exact", None, {})
        stream = Batches(model, exam.batches, resources.workers)
        pruner = PrunerOptions(cell.method)
        for block in pruned_blocks(model, targets, pruner, tokens.ids, resources):
            stream.pass_block(block.weights)
        found = stream.likelihoods()
    row = {
        "cell": f"{cell.model} {cell.method} {cell.sparsity:g} search seed {cell.seed}",
        "search": vars(how),
        "block_sparsity": np.round(final, 6).tolist(),
        "history": history,
        "pruned": int(counts.sum()),
        **exam.results(np.array([found[n].log_probabilities.sum() for n in range(len(found))])),
        "search_seconds": round(searched - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "versions": {"refimpl": __version__, "numpy": np.__version__},
    }
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    texts = " / ".join(f"{np.exp(nats(row, text)):.2f}" for text in REPORTED)
    print(f"{row['cell']}: {texts}, {history[-1][1]} block passes, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="folder of models and texts")
    parser.add_argument("--sparsity", type=float, default=0.7)
    parser.add_argument("--generations", type=int, default=Search.generations)
    parser.add_argument("--output", type=Path, default=HERE / "search.jsonl", help="results")
    given = parser.parse_args()
    place = Measured(SMOL, given.sparsity)
    run(Bench(given.real, given.real), given.output, place, Search(given.generations))
