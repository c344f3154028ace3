"""What a little more pruning of one block does to the pruned model: `harm.jsonl`, one line a block.

`python docs/study/harm.py --real DIR` prunes SmolLM2 uniformly, as the study's first cell does, but
one block 10 points more, and measures the nats per token on `tuning`. The difference to the
uniform model is the block's harm: what a correction should follow, at a price of one pruning per
block.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from grid import Cell, Papers
from measure import Bench
from run import HERE, Exam

from refimpl import read_model
from refimpl.allocation.allocate import linear_counts
from refimpl.allocation.targets import Targets
from refimpl.evaluation.likelihood import Batches
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruning.pruned_blocks import pruned_blocks
from refimpl.running.settings import Settings

MORE = 0.1


def run(bench: Bench, path: Path, cell: Cell) -> None:
    """Measure the blocks that are not on file; block -1 is the uniform model."""
    model = read_model(bench.real / cell.model)
    exam, config = Exam(bench, model, Papers(("tuning",), False)), model.config
    sizes = config.linear_sizes
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["block"] for line in lines}
    for block in [b for b in range(-1, config.num_blocks) if b not in done]:
        sparsity = np.full(config.num_blocks, cell.sparsity)
        if block >= 0:
            sparsity[block] += MORE
        counts = linear_counts(sparsity, sizes, float(sparsity.mean()))
        targets = Targets(counts, np.zeros(counts.shape), "exact", None, {})
        with Settings().open() as resources:
            stream = Batches(model, exam.batches, resources.workers)
            wanda, ids = PrunerOptions(), exam.calibration
            for pruned in pruned_blocks(model, targets, wanda, ids, resources):
                stream.pass_block(pruned.weights)
            found = stream.likelihoods()
        sums = np.array([found[n].log_probabilities.sum() for n in range(len(found))])
        row = {"cell": str(cell), "block": block, "more": MORE, **exam.results(sums)}
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(block, round(float(-sums.sum()) / 511 / len(sums), 4), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="folder of models and texts")
    parser.add_argument("--harm", type=Path, default=HERE / "harm.jsonl", help="results")
    given = parser.parse_args()
    run(Bench(given.real, given.real), given.harm, Cell())
