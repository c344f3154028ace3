"""Run the study of measured strength: `python docs/study/measured.py --real DIR`, resumable.

DIR is as for `run.py`. The rule, fixed before the runs: nothing is chosen. Corrections have no
parameter or the package's defaults, bases have their defaults (LSA its code's beta for the
sparsity), and each cell is reported.
Calibration is `sotu-1901-1979`: 12 x 512 tokens (SparseGPT: 24 x 512), of which seed k takes every
third sample from the k-th on, all tokens for pruning and the first 256 of each for scores.
Perplexity is that of the first 8 windows of 512 tokens of `speech` and `novel`.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from effects import nats
from grid import GEMMA, QWEN, REPORTED, SMOL, Papers
from measure import Bench
from run import Exam, finished

from refimpl import Model, Probes, Request, Scores, __version__, allocate, read_model, score
from refimpl.allocation.allocate import Allocation, base_only, linear_counts
from refimpl.allocation.targets import Targets
from refimpl.evaluation.likelihood import Batches
from refimpl.method.correction import corrected
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruning.pruned_blocks import pruned_blocks
from refimpl.running.settings import Settings
from refimpl.scoring.signals import signals
from refimpl.tokens import Tokens
from refimpl.tokens.model_tokens import model_tokens

HERE = Path(__file__).parent
Levels = npt.NDArray[np.float64]  # the sparsity of each block, [L]
SAMPLES, SEEDS, PROBED = 12, 3, 256  # samples of 512 tokens, seeds that share them, tokens probed
PROBED_SAMPLES = 4  # at the first place, SmolLM2 at 60 %; 2 elsewhere, to save time
SPARSITIES = (0.6, 0.7, 0.5)  # sparsities, what matters most first
LINE = 0.03  # largest change of a block's sparsity by the line, as in the first study
CORRECTIONS = {  # how an allocation is made from its base
    "none": {"correct": None},
    "divergence": {"correct": "divergence"},
    "divergence, own kappa": {"correct": "divergence", "kappa": "own"},
    "divergence, linears": {"correct": "divergence"},  # each linear probed alone
    # Strength 1/6: kappa was 5.3 to 7.1 at the first places.
    "divergence, one sparsity": {"correct": "divergence", "strength": 1 / 6, "max_correction": 1.0},
    "arrival": {"correct": "arrival"},
    "paper": {"correct": "absorption"},
    "line": {"correct": None},
    "negative": {"correct": None},
    "shuffled": {"correct": None},
    "sorted": {"correct": None},  # of divergence, ascending over depth: NeuroAL's schedule
}
BASE_OPTIONS = {
    ("lsa", 0.5): {"beta": 0.04},
    ("lsa", 0.6): {"beta": 0.1},
}  # its code's, by sparsity


@dataclass(frozen=True)
class Measured:
    """One run: a model pruned and measured."""

    model: str
    sparsity: float
    base: str = "uniform"
    correction: str = "none"
    method: str = "wanda"
    seed: int = 0
    probed: int = 0  # samples that are perturbed, of twice as many as usual; 0 for the usual ones

    def __str__(self) -> str:
        words = (self.model, self.method, f"{self.sparsity:g}", self.base, self.correction)
        probed = f" probed {self.probed}" if self.probed else ""
        return f"{' '.join(words)} seed {self.seed}{probed}"


def cells() -> Iterator[Measured]:
    """All cells in order, the headline first: no correction, measured divergence, peers' bases."""
    both, bases = ("none", "divergence"), ("owl", "alphapruning", "dlp", "lsa")
    wanda = [Measured(model, sparsity) for sparsity in SPARSITIES for model in (SMOL, GEMMA, QWEN)]
    sparsegpt = [Measured(SMOL, sparsity, method="sparsegpt") for sparsity in SPARSITIES]
    smol = [Measured(SMOL, sparsity) for sparsity in (0.6, 0.7)]
    for places in (wanda[:6], sparsegpt[:2], wanda[6:], sparsegpt[2:]):
        yield from (replace(place, correction=c) for place in places for c in both)
        yield from (replace(place, base=base) for place in places for base in bases)
    for seed in range(1, SEEDS):
        yield from (replace(place, correction=c, seed=seed) for place in smol for c in both)
    for place in smol:
        for correction in ("negative", "shuffled", "sorted", "line", "paper", "arrival"):
            yield replace(place, correction=correction)
    yield from (replace(smol[1], correction="divergence", probed=n) for n in (1, 2, 4, 8))
    yield from (replace(place, correction="divergence, own kappa") for place in smol)
    yield replace(smol[0], correction="divergence, linears")
    others = (*wanda[1:3], *wanda[4:6], *sparsegpt[:2])
    for seed in range(1, SEEDS):
        yield from (replace(place, correction=c, seed=seed) for place in others for c in both)
    yield from (replace(place, correction="divergence, one sparsity") for place in smol)
    magnitude = [Measured(SMOL, sparsity, method="magnitude") for sparsity in SPARSITIES]
    more = [replace(place, method="sparsegpt") for place in (*wanda[1:3], *wanda[4:6], *wanda[7:])]
    yield from (replace(place, correction=c) for place in (*magnitude, *more) for c in both)
    rest = (*wanda[6:], *more, sparsegpt[2])
    for seed in range(1, SEEDS):
        yield from (replace(place, correction=c, seed=seed) for place in rest for c in both)
    yield from (replace(place, base=base) for place in (*more, *magnitude) for base in bases)
    for seed in range(1, SEEDS):  # the bases of the other places have one seed
        yield from (replace(p, base=b, seed=seed) for p in (*wanda[:7], *sparsegpt) for b in bases)


def calibration(bench: Bench, model: Model, cell: Measured) -> Tokens:
    """A seed's share of the calibration text."""
    more = cell.method == "sparsegpt" or cell.probed  # a Hessian needs more
    samples = SAMPLES * 2 if more else SAMPLES
    tokens = model_tokens(model, bench.calibration, None, samples, 512)
    return replace(tokens, ids=tokens.ids[cell.seed :: SEEDS])


def scores_of(bench: Bench, model: Model, cell: Measured) -> Scores:
    """The cell's scores, measured anew: their cost is part of the result."""
    tokens = calibration(bench, model, cell)
    first = (cell.model, cell.sparsity, cell.method, cell.seed) == (SMOL, 0.6, "wanda", 0)
    samples = PROBED_SAMPLES if first else PROBED_SAMPLES // 2
    if cell.method == "sparsegpt" or cell.probed:
        samples = len(tokens.ids)
    tokens = replace(tokens, ids=tokens.ids[:samples, :PROBED])
    request = request_of(cell)
    plan = request.perturbation(None)
    if isinstance(plan, Probes):
        plan = replace(plan, probe_pruner=cell.method)
    if cell.probed:
        plan = replace(plan, probe_samples=cell.probed)
    if cell.correction == "divergence, linears":
        plan = replace(plan, units="linears")
    return score(model, tokens, plan, request)


def request_of(cell: Measured) -> Request:
    """What is asked for, beside what controls do to it."""
    options = BASE_OPTIONS.get((cell.base, cell.sparsity), {})
    return Request(cell.base, options, cell.sparsity, **CORRECTIONS[cell.correction])


def allocation(
    bench: Bench, model: Model, cell: Measured, done: Mapping[str, Mapping[str, Any]]
) -> tuple[Levels, Allocation, Scores | None]:
    """The sparsity of each block; the allocation that it is of, or is moved from; its scores."""
    config, request = model.config, request_of(cell)
    if request.correct is not None:
        scores = scores_of(bench, model, cell)
        made = allocate(scores, request)
        return made.corrected_sparsity, made, scores
    tokens = calibration(bench, model, cell)
    made = base_only(signals(model, request, tokens), request, config.linears)
    if cell.correction == "none":
        return made.corrected_sparsity, made, None
    change = np.linspace(-LINE, LINE, config.num_blocks)  # first blocks protected
    if cell.correction in ("negative", "shuffled", "sorted"):
        measured = done[str(replace(cell, correction="divergence"))]
        change = np.array(measured["block_sparsity"]) - cell.sparsity
    if cell.correction == "negative":
        change = -change
    elif cell.correction == "shuffled":
        change = np.random.default_rng(0).permutation(change)
    elif cell.correction == "sorted":
        change = np.sort(change)
    return moved(made, model, change), made, None


def moved(made: Allocation, model: Model, change: Any) -> Levels:
    """The base of an allocation, changed by so much in every block, on the budget."""
    config, request = model.config, made.request
    blocks, sizes = np.arange(config.num_blocks), config.block_sizes
    # `corrected` takes logarithms: strength 1 and no limit turn them into the change itself.
    return corrected(made.base_sparsity, -change, blocks, sizes, request.sparsity, 1.0, 1.0)


def run_cell(
    bench: Bench, model: Model, exam: Exam, cell: Measured, done: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Allocate, prune and measure one cell."""
    started = time.perf_counter()
    final, made, scores = allocation(bench, model, cell, done)
    scored, counts = time.perf_counter(), made.linear_pruned
    if final is not made.corrected_sparsity:
        counts = linear_counts(final, model.config.linear_sizes, cell.sparsity)
    targets = Targets(counts, np.zeros(counts.shape), "exact", None, {})
    with Settings().open() as resources:
        stream = Batches(model, exam.batches, resources.workers)
        ids = calibration(bench, model, cell).ids
        for block in pruned_blocks(model, targets, PrunerOptions(cell.method), ids, resources):
            stream.pass_block(block.weights)
        found = stream.likelihoods()
    sums = np.array([found[n].log_probabilities.sum() for n in range(len(found))])
    grows = made.growth
    return {
        "cell": str(cell),
        **asdict(cell),
        "block_sparsity": np.round(final, 6).tolist(),
        "pruned": int(counts.sum()),
        **exam.results(sums),
        "score_seconds": round(scored - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
        **({} if grows is None else {"kappa": grows.common_rate, "level": grows.level.tolist()}),
        **({} if grows is None else {"rate": grows.rate.tolist(), "fits": grows.fits.tolist()}),
        **({} if grows is None else {"residual": grows.residual.tolist()}),
        **({} if scores is None else {"r": scores.sweep[0].coefficient.tolist()}),
        "versions": {"refimpl": __version__, "numpy": np.__version__},
    }


def run(bench: Bench, path: Path, wanted: Iterable[str] = ()) -> None:
    """Run what is not on file yet, of the cells whose name holds one of these words."""
    done, words, model = finished(path), tuple(wanted), None
    for cell in cells():
        name = str(cell)
        if name in done or (words and not any(word in name for word in words)):
            continue
        if model is None or model.folder.name != cell.model:
            model = read_model(bench.real / cell.model)
            exam = Exam(bench, model, Papers(REPORTED, False))
        row = run_cell(bench, model, exam, cell, done)
        done[name] = row
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        texts = " / ".join(f"{np.exp(nats(row, text)):.2f}" for text in REPORTED)
        print(f"{name}: {texts}, kappa {row.get('kappa')}, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--real", type=Path, required=True, help="folder of models and texts")
    parser.add_argument("--cells", type=Path, default=HERE / "measured.jsonl", help="results")
    parser.add_argument("words", nargs="*", help="only cells whose name holds one of these")
    given = parser.parse_args()
    run(Bench(given.real, given.real), given.cells, given.words)
