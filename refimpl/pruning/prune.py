"""The pruning job: from a model to a folder with a pruned one, and a record of what was done."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.scores_json import Targets, targets_for
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import plain
from refimpl.loading.samples import Tokens
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.state import checked_ids
from refimpl.model.stream import Stream, input_of
from refimpl.pruners.counts import Pattern
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import Pruner
from refimpl.pruners.wanda import WANDA
from refimpl.pruning.block import (
    calibration_memory,
    input_sums,
    portions,
    pruned_linears,
)
from refimpl.pruning.pruned_files import PrunedFiles, copies
from refimpl.pruning.record import (
    FilesRecord,
    LinearRecord,
    Pruning,
    pruning_record,
    read_record,
)
from refimpl.running import outputs
from refimpl.running.file_system import remove
from refimpl.running.provenance import check_unchanged, identity, model_sha256, stamps
from refimpl.running.settings import Resources, Settings


def check_prune(model: Model, out: Path, force: bool) -> None:
    """Refuse, before any work, a damaged earlier record and a folder that must not be written."""
    of_model = {f"the model's {name}": path for name, path in copies(model).items()}
    read_record(model)
    outputs.undo_killed(outputs.real_path(out))
    outputs.check_folder(out, {"the model": model.path, **of_model}, force)


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
        settings: How it runs; statistics and scores are float64. The hidden copy beside `out` is
            kept: an interrupted run of the same continues after its last whole block.
        force: Whether an existing folder of models is replaced.
        scored: The document of the scores that the target was made of, which is kept in the folder.
        **changes: Fields of the settings to change, such as `dtype="float64"`.

    Returns:
        Requested and achieved counts, and how they came about, as in `pruning.json`.

    Raises:
        RefimplError: An output that cannot be written, or would damage the input; an allocation of
            other sizes; tokens that are missing, that the model cannot read, or whose states exceed
            `memory`; NaN or Inf among the weights; a Hessian that is not positive definite.

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
    if tokens is None and pruner.needs is not None:
        raise RefimplError(
            f"{pruner.record.name} without calibration tokens",
            "token ids: the pruner looks at the inputs of linears",
            "pass tokens, or use a pruner of weights alone",
        )
    read = None if pruner.needs is None else tokens
    inputs = None if read is None else checked_ids(read.ids, config)
    check_prune(model, out, force)
    memory = calibration_memory(
        model, pruner, 0 if inputs is None else inputs.size, settings
    )
    model.check_finite(settings.dtype)
    before, begun = read_record(model), stamps(model)
    counts = targets.linear_pruned.tobytes() + targets.linear_sparsity.tobytes()
    depends = identity(model) | {
        "command": "prune",
        "pruner": [pruner.record.name, pruner.options],
        "targets": [str(targets.pattern), targets.compat, sha256(counts).hexdigest()],
        "tokens": read and read.sha256,
        "dtype": np.dtype(settings.dtype).name,
    }
    with (
        outputs.whole(outputs.real_path(out), force, resumable=True) as folder,
        replace(settings, memory=memory).open() as resources,
    ):
        files = PrunedFiles(model, folder, depends)
        _prune_blocks(model, targets, pruner, inputs, resources, files)
        pruning = pruning_record(
            model,
            targets,
            files.counts,
            method=pruner.record.name,
            calibration=read and read.facts,
            files=FilesRecord(sha256=model_sha256(files.pruned)),
            before=before,
            run=resources.run_since(started),
            **pruner.options,
        )
        check_unchanged(model, begun)
        for name in (
            outputs.RECORD,
            outputs.SCORES,
        ):  # of the same run, killed near its end
            remove(folder / name)
        (folder / outputs.RECORD).write_text(outputs.json_text(plain(pruning)), "utf-8")
        if scored is not None:
            (folder / outputs.SCORES).write_text(outputs.json_text(scored), "utf-8")
    return pruning


def _prune_blocks(
    model: Model,
    targets: Targets,
    pruner: PrunerOptions,
    inputs: Array | None,
    resources: Resources,
    files: PrunedFiles,
) -> None:
    """Prune each block that an earlier run has not finished, and pass the pruned ones."""
    config, workers, dtype = model.config, resources.workers, resources.dtype
    done, last = len(files.counts), config.num_blocks - 1
    if done > last:
        return
    stream = None if inputs is None else Stream(model, dict(enumerate(inputs)), dtype)
    sequences = 1 if inputs is None else len(inputs)
    cut = [portions(linears, pruner, resources.memory) for linears in config.linears]
    resources.total = last + 1 - done
    if stream is not None:
        resources.total += (sum(map(len, cut[done:])) + last) * sequences
    for i, linears in enumerate(config.linears):
        if i >= done:
            weights = model.block(i, dtype, workers.map)
            counts, stored = dict[str, LinearRecord](), model.weights
            dtypes = {
                x: stored[f"blocks.{i}.{x}.weight"].stored.numpy_dtype for x in linears
            }
            for points in cut[i]:
                sums = input_sums(
                    stream, weights, pruner.needs, workers, points, resources.tick
                )[1]
                numbers = {x: j for j, x in enumerate(linears) if input_of(x) in points}
                goals = {x: targets.goal(i, j) for x, j in numbers.items()}
                by = sums, sequences, pruner, workers, targets.compat, dtypes
                counts |= files.write(
                    i, pruned_linears(i, linears, weights, goals, *by)
                )
            del weights
            files.finish(counts)
            resources.tick()
        if stream is not None and i < last:
            weights = files.pruned.block(i, dtype, workers.map)
            passes = [
                partial(stream.through, h, weights) for h in stream.states.values()
            ]
            stream.advance(dict(enumerate(workers.run(passes, resources.tick))))
