"""The loop over the cells of a comparison; each is scored, allocated, pruned and evaluated."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.allocation.allocate import Allocation, allocate, base_only, linear_counts, units_of
from refimpl.allocation.plan import Noise, Perturbation, Probes
from refimpl.allocation.targets import Targets
from refimpl.bench.cells import (
    BenchRow,
    BenchSettings,
    BenchText,
    Comparison,
    Grid,
    NamedAllocation,
    TextNats,
    append_row,
    rows_on_file,
)
from refimpl.errors import RefimplError, printable
from refimpl.evaluation.evaluate import evaluate
from refimpl.loading.checkpoint import read_model
from refimpl.loading.files.documents import converted, plain, reading_document
from refimpl.loading.model_tokens import model_tokens, model_windows
from refimpl.loading.samples import SAMPLES, SCORED, SEQ_LEN, Tokens, Windows
from refimpl.method.projection import project
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruning.prune import prune
from refimpl.running.file_system import (
    ResumableError,
    file_digest,
    remove,
    work_folder,
    work_path,
)
from refimpl.running.provenance import model_sha256, versions
from refimpl.running.settings import Settings
from refimpl.running.target_checks import check_parent, real_path
from refimpl.running.threads import Progress
from refimpl.scoring.score import score
from refimpl.scoring.signals import signals

JITTER, LEAST_MOVED = 1e-6, 2  # of a rerun: moves of sparsities, and weights that they are at least
Stage = Callable[[str, int, int], AbstractContextManager[Progress]]
"""Called with a cell's name, its number and how many there are; yields what shows its progress."""


@dataclass(frozen=True)
class ModelBench:
    """The cells of one model; what several of them need is measured once."""

    model: Model
    texts: Sequence[Path | None]
    shared: BenchSettings
    running: Settings
    pruned: Path
    measured: dict[object, tuple[Any, float]] = field(default_factory=dict)

    @cached_property
    def windows(self) -> list[Windows]:
        """The windows of every text."""
        size = self.shared.window, self.shared.windows
        return [model_windows(self.model, path, *size) for path in self.texts[1:]]

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """The tokens of all seeds: as `score` takes them, and as `prune` does."""
        shared, found = self.shared, dict[str, Tokens]()
        for command, (samples, seq_len) in {"score": SCORED, "prune": (SAMPLES, SEQ_LEN)}.items():
            count = samples if shared.samples is None else shared.samples
            size = count * shared.seeds, shared.seq_len
            usual = True, (samples, seq_len)
            found[command] = model_tokens(self.model, self.texts[0], None, *size, 0, *usual)
        return found

    def tokens_of(self, command: str, seed: int) -> Tokens:
        """The samples of a seed: every so-manyth one, from all over the text."""
        tokens = self.tokens[command]
        return replace(tokens, ids=np.ascontiguousarray(tokens.ids[seed :: self.shared.seeds]))

    def allocation(
        self, cell: BenchRow, asked: NamedAllocation, progress: Progress
    ) -> tuple[Allocation, float]:
        """The allocation of a cell, and the block passes that measuring for it takes."""
        request, tokens = asked.request(cell.sparsity), self.tokens_of("score", cell.seed)
        scored, passes = request.correct is not None or request.correct == "divergence", 0.0

        def counted(done: float, total: float) -> None:
            nonlocal passes
            passes = total
            progress(done, total)

        settings = replace(self.running, progress=counted)
        known: tuple[object, ...] = (cell.seed, asked)
        if request.correct == "divergence":
            known += (cell.pruner, cell.sparsity)
        if known not in self.measured and scored:
            plan: Perturbation = Noise(seed=cell.seed)
            if request.correct == "divergence":
                plan = Probes(seed=cell.seed, pruner=str(cell.pruner))
            found = score(self.model, tokens, plan, request, settings, bases=())
            self.measured[known] = found, passes
        elif known not in self.measured:
            self.measured[known] = signals(self.model, request, tokens, settings), passes
        found, passes = self.measured[known]
        if scored:
            return allocate(found, request), passes
        return base_only(found, request, self.model.config.linears), passes

    def row(self, cell: BenchRow, asked: NamedAllocation | None, progress: Progress) -> BenchRow:
        """Measure a cell, or the dense model."""
        started, seconds, facts = time.perf_counter(), dict[str, float](), plain(cell)
        facts["versions"] = versions() | {"code": program_sha256()[:12]}
        stages, model = 2 * (asked is not None) + len(self.windows), self.model

        def part(number: int) -> Progress:
            return lambda done, total: progress(number + done / max(total, 1e-9), stages)

        def lap(stage: str) -> None:
            seconds[stage] = round(time.perf_counter() - started - sum(seconds.values()), 2)

        if asked is not None:
            made, passes = self.allocation(cell, asked, part(0))
            lap("allocate")
            tokens = self.tokens_of("prune", cell.seed)
            target = jittered(made, self.model, cell.jitter) if cell.jitter else made
            pruner = PrunerOptions(str(cell.pruner), seed=cell.seed)
            settings = replace(self.running, progress=part(1))
            done = prune(model, self.pruned, target, pruner, tokens, settings=settings, force=True)
            model = read_model(self.pruned)
            lap("prune")
            facts |= {"block_sparsity": made.corrected_sparsity, "tokens_sha256": tokens.sha256}
            facts |= {"passes": passes, "pruned": done.total_pruned}
            facts |= {"kappa": made.growth and made.growth.common_rate}
        texts = []
        for i, windows in enumerate(self.windows):
            shown = part(stages - len(self.windows) + i)
            found = evaluate(model, windows, self.running, progress=shown).perplexity
            texts.append(TextNats(nats=found.nats.tolist(), tokens=found.tokens.tolist()))
        lap("measure")
        remove(self.pruned)
        return converted(plain(facts | {"texts": texts, "seconds": seconds}), BenchRow)

    @cached_property
    def sha256(self) -> str:
        """Of the dense model."""
        return model_sha256(self.model)


def texts_named(paths: Sequence[Path | None], otherwise: str) -> tuple[BenchText, ...]:
    """Texts by names that differ and digests; without a path, that of refimpl."""
    texts = list[BenchText]()
    for path in paths:
        if path is None:
            texts.append(BenchText(name=Path(otherwise).stem, sha256=None))
            continue
        with reading_document(path, ("a text", "a text in UTF-8", "check the path")):
            name, digest = printable(path.stem), file_digest(path)
        if name in {x.name for x in texts}:
            name = f"{name} ({digest[:6]})"
        texts.append(BenchText(name=name, sha256=digest))
    if len({x.sha256 for x in texts}) < len(texts):
        raise RefimplError("a text twice in --measure-on", "each text once", "omit one of them")
    return tuple(texts)


def jittered(made: Allocation, model: Model, seed: int) -> Targets:
    """An allocation with every sparsity moved by about 1e-6, or by two weights, on its budget."""
    sizes, request = model.config.linear_sizes, made.request
    per_linear = np.ptp(made.linear_sparsity, axis=1).any()
    moved: Array = (made.linear_sparsity if per_linear else made.corrected_sparsity).copy()
    units, exists = units_of(moved, sizes)
    noise = np.random.default_rng(seed).standard_normal(len(units))
    noise *= np.maximum(JITTER, LEAST_MOVED / units)
    limits = {"lo": request.lo, "hi": request.hi}
    moved[exists] = project(moved[exists] + noise, units, request.sparsity, **limits)
    share = np.where(sizes > 0, moved.reshape(len(sizes), -1), 0.0)
    return Targets(linear_counts(moved, sizes, request.sparsity), share, "exact", None, {})


@cache
def program_sha256() -> str:
    """Of the sources of refimpl, which a row states: another version may give other numbers."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256("".join(map(file_digest, files)).encode()).hexdigest()


def measured_cells(
    models: Sequence[Model],
    grid: Grid,
    texts: Sequence[Path | None],
    shared: BenchSettings,
    out: Path,
    running: Settings,
    stage: Stage,
) -> tuple[Comparison, int]:
    """Measure all cells that are not on file; the comparison, and how many these were."""
    check_parent(out)
    names = [model.name for model in models]
    if len({*names}) < len(names):
        raise RefimplError(
            f"two models are called {max(names, key=names.count)}",
            "a folder or file name of its own for each model",
            "rename one, or omit it",
        )
    with work_folder(work_path(real_path(out))) as work:
        benches = [ModelBench(model, texts, shared, running, work / "model") for model in models]
        for bench in benches:
            _ = bench.windows, bench.tokens  # refused before the long part
        weights = {bench.model.name: bench.sha256 for bench in benches}
        found = rows_on_file(out, shared, weights)
        known = {row.key for row in found.rows}
        left = [
            (bench, *cell)
            for bench in benches
            for cell in grid.cells(bench.model.name, bench.sha256)
            if cell[0].key not in known
        ]
        rows = [*found.rows]
        for number, (bench, cell, asked) in enumerate(left, 1):
            try:
                with stage(str(cell), number, len(left)) as progress:
                    rows.append(bench.row(cell, asked, progress))
            except RefimplError as error:  # the other cells stay finished
                raise ResumableError(error.problem, error.expected, error.remedy) from error
            append_row(out, rows[-1])
    return Comparison(shared, tuple(rows)), len(left)
