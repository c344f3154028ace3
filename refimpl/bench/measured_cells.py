"""The loop over the cells of a comparison; each is scored, allocated, pruned and evaluated."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from refimpl.allocation.allocate import (
    Allocation,
    allocate,
    base_only,
    linear_counts,
    units_of,
)
from refimpl.allocation.request import Noise, Perturbation, probes_for
from refimpl.allocation.scores_json import Targets
from refimpl.bench import cells as bench
from refimpl.errors import RefimplError
from refimpl.evaluation.evaluate import evaluate
from refimpl.loading.checkpoint import read_model
from refimpl.loading.samples import SAMPLES, SCORED, SEQ_LEN, Tokens
from refimpl.loading.text import model_tokens, model_windows
from refimpl.method.projection import project
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.pruning.prune import prune
from refimpl.running.file_system import ResumableError, remove, work_folder, work_path
from refimpl.running.outputs import check_parent, real_path
from refimpl.running.provenance import model_sha256, versions
from refimpl.running.settings import Settings
from refimpl.running.threads import Progress
from refimpl.scoring.base_signals import signals_of
from refimpl.scoring.score import score

JITTER, LEAST_MOVED = (
    1e-6,
    2,
)  # of a rerun: moves of sparsities, and weights that they are at least


class ModelBench:
    """The cells of one model; what several of them need is measured once."""

    def __init__(
        self,
        model: Model,
        texts: Sequence[Path | None],
        shared: bench.BenchSettings,
        running: Settings,
    ) -> None:
        self.model, self.running, self.sha256 = model, running, model_sha256(model)
        self.windows = [
            model_windows(model, x, shared.window, shared.windows) for x in texts[1:]
        ]
        self.measured = dict[object, Any]()
        self.text, self.shared = texts[0], shared
        takes = {
            "score": SCORED,
            "prune": (SAMPLES, SEQ_LEN),
        }  # each command, by default
        self.tokens = {x: self.samples(default) for x, default in takes.items()}

    def samples(self, default: tuple[int, int]) -> list[Tokens]:
        """Every so-manyth sample of the text, by seed."""
        shared, seeds = self.shared, self.shared.seeds
        count = (default[0] if shared.samples is None else shared.samples) * seeds
        tokens = model_tokens(
            self.model, self.text, None, count, shared.seq_len, 0, True, default
        )
        return [replace(tokens, ids=tokens.ids[n::seeds].copy()) for n in range(seeds)]

    def allocation(self, cell: bench.BenchRow, running: Settings) -> Allocation:
        """The allocation of a cell; what others need of its measurement is kept."""
        request = bench.requested_by_name(str(cell.allocation), cell.sparsity)
        tokens = self.tokens["score"][cell.seed]
        plan: Perturbation = Noise(seed=cell.seed)
        key = [cell.seed, request.record.name, request.options, request.correct]
        if request.correct == "divergence":
            plan = probes_for(bench.pruner_by_name(str(cell.pruner), cell.seed))
            key += [plan.pruner, cell.sparsity]
        measured = self.measured.get(str(key))
        if request.correct is None:
            measured = measured or signals_of(self.model, request, tokens, running)
            allocation = base_only(measured, request, self.model.config.linears)
        else:
            measured = measured or score(
                self.model, tokens, plan, request, running, bases=()
            )
            allocation = allocate(measured, request)
        self.measured[str(key)] = measured
        return allocation

    def row(
        self, cell: bench.BenchRow, out: Path, progress: Progress
    ) -> bench.BenchRow:
        """Measure a cell, or the dense model; `out` is where the pruned model is meanwhile."""
        model, facts = self.model, dict[str, Any](versions=versions())
        count = 2 * (cell.pruner is not None) + len(self.windows)

        def stage(i: int) -> Settings:  # of the allocation, the pruning, or a text
            share = lambda done, total: progress(i + done / total, count)  # noqa: E731
            return replace(self.running, progress=share)

        if cell.pruner is not None:
            allocation, tokens = (
                self.allocation(cell, stage(0)),
                self.tokens["prune"][cell.seed],
            )
            target = (
                jittered(allocation, model, cell.jitter) if cell.jitter else allocation
            )
            pruner = bench.pruner_by_name(cell.pruner, cell.seed)
            done = prune(
                model, out, target, pruner, tokens, settings=stage(1), force=True
            )
            model = read_model(out)
            facts["block_sparsity"] = tuple(allocation.corrected_sparsity.tolist())
            facts |= {"pruned": done.total_pruned, "tokens_sha256": tokens.sha256}
        numbered = enumerate(self.windows, count - len(self.windows))
        results = [evaluate(model, x, stage(i)).perplexity for i, x in numbered]
        texts = [
            bench.TextNats(nats=x.nats.tolist(), tokens=x.tokens.tolist())
            for x in results
        ]
        remove(out)
        return structs.replace(cell, texts=tuple(texts), **facts)


def jittered(source: Allocation, model: Model, seed: int) -> Targets:
    """An allocation with every sparsity moved by about 1e-6, or by two weights, on its budget."""
    sizes, request = model.config.linear_sizes, source.request
    per_linear = np.ptp(source.linear_sparsity, axis=1).any()
    moved: Array = (
        source.linear_sparsity if per_linear else source.corrected_sparsity
    ).copy()
    units, exists = units_of(moved, sizes)
    noise = np.random.default_rng(seed).standard_normal(len(units))
    noise *= np.maximum(JITTER, LEAST_MOVED / units)
    moved[exists] = project(
        moved[exists] + noise, units, request.sparsity, request.lo, request.hi
    )
    share = np.where(sizes > 0, moved.reshape(len(sizes), -1), 0.0)
    return Targets(
        linear_counts(moved, sizes, request.sparsity), share, "exact", None, {}
    )


def measured_cells(
    models: Sequence[Model],
    grid: bench.Grid,
    texts: Sequence[Path | None],
    shared: bench.BenchSettings,
    out: Path,
    running: Settings,
    bar: Callable[[str], AbstractContextManager[Progress]],
) -> tuple[bench.Comparison, int]:
    """Measure all cells that are not on file; the comparison, and how many these were."""
    check_parent(out)
    names = [model.name for model in models] + [
        f"{x.name} (text)" for x in shared.measured_on
    ]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RefimplError(
            f"two inputs are called {min(twice)}",
            "a file or folder name of its own for each model and each text",
            "rename one, or omit it",
        )
    with work_folder(work_path(real_path(out))) as work:
        benches = {x.name: ModelBench(x, texts, shared, running) for x in models}
        on_file = bench.rows_on_file(
            out, shared, {name: x.sha256 for name, x in benches.items()}
        )
        rows, finished = [*on_file.rows], {row.key for row in on_file.rows}
        cells = [
            cell for name, x in benches.items() for cell in grid.cells(name, x.sha256)
        ]
        left = [cell for cell in cells if cell.key not in finished]
        with bar("cells") as progress:
            for i, cell in enumerate(left):
                share = partial(
                    lambda i, done, of: progress(i + done / of, len(left)), i
                )
                try:
                    rows.append(benches[cell.model].row(cell, work / "model", share))
                except RefimplError as error:  # the other cells stay finished
                    raise ResumableError(
                        error.problem, error.expected, error.remedy
                    ) from error
                bench.append_row(out, rows[-1])
                progress(i + 1, len(left))
    return bench.Comparison(shared, tuple(rows)), len(left)
