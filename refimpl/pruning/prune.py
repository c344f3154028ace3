"""The pruning job: from a model to a folder with a pruned one, and a record of what was done."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace as replaced

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.scores_json import Targets, targets_for
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import plain
from refimpl.loading.samples import TokenFacts, Tokens
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids
from refimpl.model.stream import Stream, state_bytes
from refimpl.pruners.counts import Pattern
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import Pruner, pruners
from refimpl.pruners.wanda import WANDA
from refimpl.pruning.block import (
    InputSums,
    input_sums,
    matrix_bytes,
    portions,
    product_bytes,
    pruned_linears,
)
from refimpl.pruning.pruned_files import PrunedFiles, copies
from refimpl.pruning.record import (
    RECORD_FORMAT,
    BlockRecord,
    FilesRecord,
    LinearRecord,
    Pruning,
    read_record,
)
from refimpl.running.file_system import remove
from refimpl.running.outputs import (
    RECORD,
    SCORES,
    check_folder,
    json_text,
    real_path,
    undo_killed,
    whole,
)
from refimpl.running.provenance import check_unchanged, identity, model_sha256, stamps
from refimpl.running.settings import Resources, Settings, parse_memory, require_memory


def check_prune(model: Model, out: Path, force: bool) -> None:
    """Refuse, before any work, a damaged earlier record and a folder that must not be written."""
    of_model = {f"the model's {name}": path for name, path in copies(model).items()}
    read_record(model)
    undo_killed(real_path(out))
    check_folder(out, {"the model": model.path, **of_model}, force)


def calibration_memory(model: Model, pruner: PrunerOptions, tokens: int, settings: Settings) -> int:
    """The memory for states and outer products of so many tokens; too little is refused."""
    config = model.config
    memory = parse_memory(settings.memory, matrix_bytes(config.linears, pruner))
    need = state_bytes(config, 2 * tokens, settings.dtype)
    thing, size = "the calibration's residual states", f"{tokens} tokens, before and after a block"
    if tokens and pruner.needs == "products":
        thing, size = f"{thing} and outer products", f"{size}, and the products of one input"
        need += max(x for block in config.linears for x in product_bytes(block, pruner).values())
    require_memory(memory, need, thing, size, "fewer `samples`")
    return memory


def prune(
    model: Model,
    out: str | Path,
    target: Allocation | Pattern | Targets,
    pruner: str | Pruner | PrunerOptions = WANDA.name,
    tokens: Tokens | None = None,
    *,
    settings: Settings | None = None,
    force: bool = False,
    scored: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Pruning:
    """Prune a model into a new folder, which appears whole or not at all.

    Each block is pruned on inputs that passed the pruned blocks before it, the block itself dense.

    Args:
        model: From `read_model`; its files are not touched.
        out: The new folder.
        target: How much every linear loses: an allocation for this model, or a pattern.
        pruner: A pruner by its name, with options, or a `Pruner` of your own.
        tokens: Calibration tokens; None for pruners that look at weights alone.
        settings: How and where it runs: statistics, scores and SparseGPT are float64; sequences
            pass the blocks, and linears are pruned, on the threads of this process, whatever the
            executor. The hidden copy beside `out` is kept: an interrupted run of the same continues
            after its last whole block.
        force: Whether an existing folder of models is replaced.
        scored: The document of the scores that the target was made of, which is kept in the folder.
        **changes: Fields of the settings to change, such as `dtype="float64"`.

    Returns:
        Requested and achieved counts, and how they came about, as in `pruning.json`.

    Raises:
        RefimplError: An output that cannot be written, or would damage the input; an allocation for
            a model of other sizes; tokens that are missing, that the model cannot read, or whose
            states exceed `memory`; NaN or Inf among the weights; a Hessian that is not positive
            definite.

    Source: Wanda, SparseGPT (peers): sequential pruning.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> with TemporaryDirectory() as folder:
        ...     pruning = prune(model, f"{folder}/out", Pattern(2, 4), "magnitude")
        >>> pruning.total_pruned, pruning.total_weights
        (14592, 29184)
    """
    out, config, started = Path(out), model.config, time.perf_counter()
    pruner = pruner if isinstance(pruner, PrunerOptions) else PrunerOptions(pruner)
    settings = replace(settings or Settings(), **changes)
    targets = targets_for(target, config.linears)
    inputs = _calibration(model, pruner, tokens)
    facts = None if inputs is None or tokens is None else tokens.facts
    check_prune(model, out, force)
    memory = calibration_memory(model, pruner, 0 if inputs is None else inputs.size, settings)
    model.check_finite(settings.dtype)
    before, begun = read_record(model), stamps(model)
    depends = identity(model) | _options(targets, pruner, facts, settings.dtype)
    with (
        whole(real_path(out), force, resumable=True) as folder,
        replace(settings, memory=memory).open() as resources,
    ):
        files = PrunedFiles(model, folder, depends)
        _prune_blocks(model, targets, pruner, inputs, resources, files)
        pruning = _recorded(
            model,
            targets,
            files.counts,
            method=pruner.record.name,
            calibration=facts,
            files=FilesRecord(sha256=model_sha256(files.pruned)),
            before=before,
            run=resources.run_since(started),
            **pruner.options,
        )
        check_unchanged(model, begun)
        for name in (RECORD, SCORES):  # of the same run, killed when it was nearly done
            remove(folder / name)
        (folder / RECORD).write_text(json_text(plain(pruning)), "utf-8")
        if scored is not None:
            (folder / SCORES).write_text(json_text(scored), "utf-8")
    return pruning


def _recorded(
    model: Model, targets: Targets, counts: Sequence[Mapping[str, LinearRecord]], **facts: Any
) -> Pruning:
    """What was asked for, and what came of it."""
    asked, share = targets.linear_pruned, targets.linear_sparsity
    blocks, idle = list[BlockRecord](), dict[str, None]()
    for i, block in enumerate(counts):
        every = [
            replaced(linear, sparsity=float(share[i, j]), requested=int(asked[i, j]))
            for j, linear in enumerate(block.values())
        ]
        blocks.append(BlockRecord(index=i, linears=every))
        idle |= {f"blocks.{i}.{x.name.rpartition('.')[0]}": None for x in every if x.method}
    linears = [x for block in blocks for x in block.linears]
    weights, total = sum(x.weights for x in linears), int(asked.sum())
    return Pruning(
        format=RECORD_FORMAT,
        model=model.name,
        family=model.config.family,
        compat=targets.compat,
        pattern=None if targets.pattern is None else str(targets.pattern),
        requested_sparsity=total / weights,
        total_weights=weights,
        total_requested=total,
        total_pruned=sum(x.pruned for x in linears),
        total_zeros=sum(x.zeros for x in linears),
        without_tokens=tuple(idle),
        allocation=dict(targets.made),
        blocks=blocks,
        **facts,
    )


def _prune_blocks(
    model: Model,
    targets: Targets,
    pruner: PrunerOptions,
    inputs: Array | None,
    resources: Resources,
    files: PrunedFiles,
) -> None:
    """Prune each block that an earlier run has not finished, and pass the pruned ones."""
    config, needs = model.config, pruner.needs
    workers, dtype = resources.workers, resources.dtype
    done, last = len(files.counts), config.num_blocks - 1
    if done > last:
        return
    stream = None if inputs is None else Stream(model, dict(enumerate(inputs)), dtype)
    cut = [portions(linears, pruner, resources.memory) for linears in config.linears]
    resources.total = last + 1 - done
    if stream is not None:
        resources.total += (sum(map(len, cut[done:])) + last) * len(stream.states)

    def stored(block: int, name: str) -> np.dtype[Any]:
        return model.weights[f"blocks.{block}.{name}.weight"].stored.numpy_dtype

    for i, linears in enumerate(config.linears):
        if i >= done:
            weights = model.block(i, dtype, workers.map)
            goals = [targets.goal(i, j) for j in range(len(linears))]
            counts = dict[str, LinearRecord]()
            for points in cut[i]:
                sums = InputSums(points=points)
                if stream is not None and needs is not None:
                    sums = input_sums(stream, weights, needs, workers, points, resources.tick)
                how = goals, sums, pruner, workers, targets.compat, partial(stored, i)
                counts |= files.write(i, pruned_linears(i, linears, weights, *how))
            del weights
            files.finish(counts)
            resources.tick()
        if stream is not None and i < last:
            weights = files.pruned.block(i, dtype, workers.map)
            passes = [partial(stream.through, h, weights) for h in stream.states.values()]
            stream.advance(dict(enumerate(workers.run(passes, resources.tick))))


def _calibration(model: Model, pruner: PrunerOptions, tokens: Tokens | None) -> Array | None:
    """Checked ids [N, S] for a pruner that needs inputs; else None."""
    if pruner.needs is None:
        return None
    if tokens is None:
        alone = next(x.name for x in pruners().values() if x.needs is None)
        raise RefimplError(
            f"{pruner.record.name} without calibration tokens",
            "token ids: the pruner looks at the inputs of linears",
            f"pass tokens, or use {alone}",
        )
    return checked_ids(tokens.ids, model.config)


def _options(
    targets: Targets, pruner: PrunerOptions, tokens: TokenFacts | None, dtype: npt.DTypeLike
) -> dict[str, Any]:
    """What the pruned blocks depend on, besides the weights and the configuration of the model."""
    counts = targets.linear_pruned.tobytes() + targets.linear_sparsity.tobytes()
    return {
        "command": "prune",
        "pruner": [pruner.record.name, pruner.options],
        "targets": [str(targets.pattern), targets.compat, sha256(counts).hexdigest()],
        "tokens": tokens and tokens.sha256,
        "dtype": np.dtype(dtype).name,
    }
