"""The pruning job: from a model to a folder with a pruned one, and a record of what was done."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial as bound
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.targets import Targets, targets_for
from refimpl.loading.files.documents import filled, plain
from refimpl.model.model import BlockWeights, Model
from refimpl.model.ops import Array
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pattern import Pattern
from refimpl.pruners.pruner import Pruner
from refimpl.pruners.wanda import WANDA
from refimpl.pruning.pruned_blocks import BlockPruner, calibration, pruned_weights
from refimpl.pruning.pruned_files import Counts, PrunedFiles, copies
from refimpl.pruning.record import RECORD_FORMAT, BlockRecord, LinearRecord, Pruning, read_record
from refimpl.running.provenance import TokenFacts, UnchangedFiles, model_sha256, token_facts
from refimpl.running.settings import (
    Resources,
    Settings,
    parse_memory,
    peak_memory,
    require_memory,
)
from refimpl.running.threads import thread_count
from refimpl.scoring.experiment import state_bytes
from refimpl.scoring.measurements import ProductBytes
from refimpl.storage.files import json_text, undo_killed, whole
from refimpl.storage.finished_units import FinishedUnits, finished_units
from refimpl.storage.target_checks import RECORD, SCORES, check_folder, real_path
from refimpl.tokens import Tokens

BLOCK, STATES = "block {}".format, "states {}".format
"""Names of finished units: the linears of a pruned block, and the states [1, S, D] after it."""
Portions = Sequence[Sequence[tuple[Collection[str] | None, int | None, int]]]
"""Of each block, trace points whose sums are in memory together, linears at a time, and bytes."""


def check_prune(
    model: Model,
    out: Path,
    force: bool,
    pruner: PrunerOptions | None = None,
    state_bytes: int = 0,
) -> None:
    """Refuse, before any work, a damaged earlier record and a folder that must not be written.

    There has to be room for the new model and finished units: bits, new weights if the pruner
    changes them, and states.
    """
    files = copies(model)
    read_record(model)
    of_model = {f"the model's {name}": path for name, path in files.files.items()}
    read = {"the model": model.path, **of_model}
    units = 0.0 if pruner is None else 1.0 if pruner.record.compensate else 0.125
    undo_killed(real_path(out))
    check_folder(out, read, force, int((1 + units) * files.needed_bytes) + state_bytes)


def pruning_memory(
    model: Model, pruner: PrunerOptions, tokens: int, settings: Settings
) -> tuple[int, int, Portions]:
    """The memory for states and outer products, all that will be resident, and the portions.

    Too little is refused.
    """
    config, blocks, threads = model.config, list[ProductBytes](), thread_count(settings.threads)
    item = np.dtype(settings.dtype).itemsize
    states = state_bytes(config, 2 * tokens, settings.dtype)
    if pruner.record.needs == "products" and tokens:
        for i, linears in enumerate(config.linears):
            stored = [model.weights[f"blocks.{i}.{name}.weight"].stored for name in linears]
            new_item = max((x.numpy_dtype.itemsize for x in stored), default=0)
            blocks.append(ProductBytes.of(linears, item, new_item))
    memory = parse_memory(settings.memory, max((x.most(threads) for x in blocks), default=0))
    thing = "the calibration's residual states" + " and outer products" * bool(blocks)
    size = f"{tokens} tokens in all, before and after a block"
    size += ", and one input's outer products, and what is computed from them" * bool(blocks)
    need = states + max((x.least for x in blocks), default=0)
    require_memory(memory, need, thing, size, "fewer `samples`")
    weights = item * int(config.block_sizes.max())
    portions: Portions = [x.portions(memory - states, threads, weights) for x in blocks]
    new = max((x.new for x in blocks), default=0)  # also read back from the disk
    used = [x + new for block in portions for *_, x in block]
    resident = (peak_memory() or 0) + states + max(2 * weights, *used, 0)
    return memory, resident, portions or [[(None, None, 0)]] * config.num_blocks


def prune(
    model: Model,
    out: str | Path,
    target: Allocation | Pattern | Targets,
    pruner: str | Pruner | PrunerOptions = WANDA.name,
    tokens: Tokens | None = None,
    *,
    settings: Settings | None = None,
    force: bool = False,
    measure: Callable[[Model], Mapping[str, Any]] = lambda model: {},
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
            executor. Finished units are kept beside `out`: an
            interrupted run of the same is continued after its last whole block.
        force: Whether an existing folder of models is replaced.
        measure: Called with the new model before it is in place; it returns further fields of the
            record.
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
    inputs = calibration(model, pruner, tokens)
    facts = None if inputs is None or tokens is None else token_facts(tokens)
    size = 0 if inputs is None else inputs.size
    check_prune(model, out, force, pruner, 2 * state_bytes(config, size, settings.dtype))
    memory, _, portions = pruning_memory(model, pruner, size, settings)
    model.check_finite(settings.dtype)
    before, source = read_record(model), UnchangedFiles(model)
    identity = source.identity | _options(targets, pruner, facts, settings.dtype)
    with (
        whole(real_path(out), force) as folder,
        finished_units(folder.parent, identity, source.check) as finished,
        replace(settings, memory=memory).open() as resources,
    ):
        _prune_blocks(model, targets, pruner, inputs, resources, finished, portions)
        folder.mkdir()
        files = PrunedFiles(model, folder)
        counts = list[Mapping[str, Counts]]()
        for i in range(config.num_blocks):
            counts.append(files.write(i, finished.read(BLOCK(i), mapped=True)))
        pruned = files.open()
        pruning = _recorded(
            model,
            targets,
            counts,
            method=pruner.record.name,
            calibration=facts,
            files=files.record(model_sha256(pruned)),
            before=before,
            run=resources.run_since(started),
            **pruner.options,
            **measure(pruned),
        )
        source.check(whole=True)
        (folder / RECORD).write_text(json_text(plain(pruning)), "utf-8")
        if scored is not None:
            (folder / SCORES).write_text(json_text(scored), "utf-8")
    return pruning


def _recorded(
    model: Model, targets: Targets, counts: Sequence[Mapping[str, Counts]], **facts: Any
) -> Pruning:
    """What was asked for, and what came of it."""
    asked, share = targets.linear_pruned, targets.linear_sparsity
    linears = [x for block in counts for x in block.values()]
    idle = [
        f"blocks.{i}.{name.rpartition('.')[0]}"
        for i, block in enumerate(counts)
        for name, linear in block.items()
        if linear.method is not None
    ]
    blocks = [
        BlockRecord(
            index=i,
            linears=[
                filled(LinearRecord, x, name=name, sparsity=share[i, j], requested=asked[i, j])
                for j, (name, x) in enumerate(block.items())
            ],
        )
        for i, block in enumerate(counts)
    ]
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
        without_tokens=tuple(dict.fromkeys(idle)),
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
    finished: FinishedUnits,
    portions: Portions,
) -> None:
    """Prune each block that is no finished unit yet; of the states, the last ones are kept."""
    blocks = range(model.config.num_blocks)
    left = [i for i in blocks if finished.read(BLOCK(i), mapped=True) is None]
    if not left:
        return
    last, first, states = left[-1], 0, None
    for i in range(left[0]):
        if earlier := finished.read(STATES(i), mapped=True):
            first, states = i + 1, earlier
    resources.total = len(left)
    if inputs is not None:
        resources.total += (sum(len(portions[i]) for i in left) + last - first) * len(inputs)
    block_pruner = BlockPruner(model, targets, pruner, inputs, resources, states, first)

    def pruned(i: int) -> BlockWeights:
        linears = finished.read(BLOCK(i), mapped=True)
        return pruned_weights(model, i, linears, resources.dtype, resources.workers.map)

    for i in range(first, last + 1):
        if i in left:
            linears = (x for how in portions[i] for x in block_pruner.linears(i, *how[:2]))
            finished.write(BLOCK(i), dict(linears))
            resources.tick()
        if i < last and (states := block_pruner.advance(bound(pruned, i))):
            finished.write(STATES(i), list(states))
            finished.forget(STATES(i - 1))


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
