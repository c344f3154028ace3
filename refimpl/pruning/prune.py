"""From a model to a pruned one: a folder like the original's, and a record of what was done."""

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.allocation.allocate import Allocation
from refimpl.allocation.targets import Targets, targets_for
from refimpl.errors import RefimplError
from refimpl.model.floating_point import loud
from refimpl.model.model import Model
from refimpl.model.token_ids import checked_ids
from refimpl.pruners.decision import Pruner
from refimpl.pruners.pattern import Pattern
from refimpl.pruning.checkpoint import KeptBlocks
from refimpl.pruning.copied_files import RECORD, copies
from refimpl.pruning.inspection import read_record
from refimpl.pruning.pruned_blocks import CALIBRATED, pruned_blocks
from refimpl.pruning.pruned_files import Rewritten, rewrite
from refimpl.pruning.remote_calibration import calibration_states
from refimpl.running.executors import open_pool
from refimpl.running.memory import parse_memory
from refimpl.running.provenance import Run, TokenFacts, identity, run_since, token_facts
from refimpl.running.threads import Progress, Workers
from refimpl.storage.files import write_json
from refimpl.storage.folder import check_target, new_folder
from refimpl.tokens import Tokens

RECORD_FORMAT = 1


@dataclass(frozen=True)
class Pruning:
    """What pruning did to a model.

    Args:
        model: Its name.
        family: Its family.
        pruner: How weights were chosen.
        targets: How much every linear should lose.
        tokens: Where the calibration tokens came from; None where the method needs none.
        written: Counts per linear, and what was copied.
        before: The `pruning.json` of a model that had been pruned before, or None.
        run: How it was computed.
    """

    model: str
    family: str
    pruner: Pruner
    targets: Targets
    tokens: TokenFacts | None
    written: Rewritten
    before: Mapping[str, Any] | None
    run: Run

    @property
    def total_weights(self) -> int:
        """Prunable weights."""
        return sum(found.weights for block in self.written.counts for found in block.values())

    @property
    def total_pruned(self) -> int:
        """Weights decided not to stay."""
        return sum(found.pruned for block in self.written.counts for found in block.values())

    @property
    def total_zeros(self) -> int:
        """Zeros among the prunable weights of the new file."""
        return sum(found.zeros for block in self.written.counts for found in block.values())


def check_prune(
    model: Model,
    out: Path,
    inputs: Mapping[str, Path | None],
    force: bool,
    resume: bool = False,
    kept_bytes: int = 0,
) -> None:
    """Refuse, before any work, a folder that could not be written or would damage something.

    Args:
        model: The model.
        out: The folder to be made.
        inputs: Other files that are read, by what to call them.
        force: Whether an existing folder is replaced.
        resume: Whether a run that was killed is taken up.
        kept_bytes: Room for what is kept for the case of a kill.

    Raises:
        RefimplError: See `folder.check_target`.
    """
    files = copies(model)
    of_model = {f"the model's {name}": path for name, path in files.files.items()}
    known = {"the model": model.path, **of_model, **inputs}
    check_target(out, known, force, files.needed_bytes + kept_bytes, resume)


def prune(
    model: Model,
    out: str | Path,
    target: Allocation | Pattern | Targets,
    pruner: Pruner | None = None,
    tokens: Tokens | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    keep: bool | None = None,
    dtype: npt.DTypeLike = np.float32,
    threads: int | None = None,
    memory: str | int | None = None,
    executor: Executor | str | None = None,
    progress: Progress = lambda done, total: None,
) -> Pruning:
    """Prune a model into a new folder, which appears whole or not at all.

    Args:
        model: From `read_model`; its files are not touched.
        out: The new folder.
        target: How much every linear loses: an allocation for this model, or a pattern.
        pruner: How weights are chosen; Wanda if None.
        tokens: Calibration tokens; None for methods that look at weights alone.
        force: Whether an existing folder of models is replaced.
        resume: Whether a run of the same that was killed is taken up, after its last whole block.
        keep: Whether what is found outlives an error of the input or the disk; `resume` if None.
        dtype: Of the forward passes; statistics, scores and SparseGPT are float64.
        threads: Worker threads, or processes; one per core if None.
        memory: Memory for residual states, such as "1G"; what is free, at most 2 GiB, if None.
        executor: Where the passes run and the linears of a block are pruned, as for `score`.
        progress: Called with the block passes done and in all.

    Returns:
        Requested and achieved counts, and how they were made; the same is in `pruning.json`.

    Raises:
        RefimplError: An output that cannot be written, or would damage the input; an allocation for
            a model of other sizes; tokens the model cannot read, or more of them than memory holds
            (on threads); NaN or Inf among the weights; a Hessian that is not positive definite;
            what an earlier run left, without `resume`, or of another run.

    Source:
        docs/explanation/method.md, section 7 (Wanda, SparseGPT: peers).

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> with TemporaryDirectory() as folder:
        ...     done = prune(model, f"{folder}/out", Pattern(2, 4), Pruner("magnitude"))
        >>> done.total_pruned, done.total_weights
        (14592, 29184)
    """
    pruner, out = pruner or Pruner(), Path(out)
    targets = targets_for(target, model.config.linear_shapes, model.config.num_blocks)
    started, config, budget = time.perf_counter(), model.config, parse_memory(memory)
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise RefimplError(f"dtype {dtype}", "float32 or float64", "choose one of these")
    statistic, here = CALIBRATED.get(pruner.method), executor in (None, "threads")
    ids = None if statistic is None or tokens is None else checked_ids(tokens.ids, config)
    held = 0 if ids is None else ids.size * config.hidden_size * np.dtype(dtype).itemsize
    check_prune(model, out, {}, force, resume, (2 if here else 3) * held)
    if ids is not None and here and 2 * held > budget:
        raise RefimplError(
            f"memory of {budget} bytes does not hold the calibration's residual states",
            f"{2 * held} bytes: {len(ids)} x {ids.shape[1]} tokens, before and after a block",
            f"use --memory {2 * held} or more, or fewer --samples",
        )
    model.check_finite(dtype)
    before = read_record(model)
    run = _identity(model, targets, pruner, None if ids is None else tokens, dtype)
    with (
        loud(dtype),
        Workers(threads) as workers,
        open_pool(executor, threads) as where,
        new_folder(out, force, resume, resume if keep is None else keep) as folder,
        KeptBlocks(folder, run) as kept,
    ):
        first = len(kept.counts)
        done, total = 0, (2 * (config.num_blocks - first) - 1) * (0 if ids is None else len(ids))

        def tick() -> None:
            nonlocal done
            done += 1
            progress(done, total)

        calibration = None
        if ids is not None and statistic is not None:
            calibration = calibration_states(
                model, ids, statistic, workers, dtype, tick, where, kept, folder
            )
        found = pruned_blocks(
            model,
            targets,
            pruner,
            ids,
            workers,
            dtype,
            first=first,
            calibration=calibration,
            engine=where,
            scratch=kept.folder,
        )
        blocks = ((block.index, block.linears) for block in found)
        behind = tuple if calibration is None else calibration.behind
        written = rewrite(model, folder, blocks, kept, behind)
        pruning = Pruning(
            model.name,
            config.family,
            pruner,
            targets,
            None if ids is None or tokens is None else token_facts(tokens),
            written,
            before,
            run_since(started, dtype, workers, budget),
        )
        write_json(folder / RECORD, record(pruning))
    return pruning


def _identity(
    model: Model,
    targets: Targets,
    pruner: Pruner,
    tokens: Tokens | None,
    dtype: npt.DTypeLike,
) -> dict[str, Any]:
    """Everything that the new model depends on."""
    counts = targets.linear_pruned.tobytes() + targets.linear_sparsity.tobytes()
    return identity(model) | {
        "command": "prune",
        "pruner": asdict(pruner),
        "targets": [
            str(targets.pattern),
            targets.compat,
            sha256(counts).hexdigest(),
        ],
        "tokens": tokens and tokens.sha256,
        "dtype": np.dtype(dtype).name,
    }


def record(pruning: Pruning) -> dict[str, Any]:
    """What `pruning.json` holds.

    Args:
        pruning: What was done.

    Returns:
        Numbers, strings, lists and objects.
    """
    written, pruner, targets = pruning.written, pruning.pruner, pruning.targets
    total = {
        "total_weights": pruning.total_weights,
        "total_requested": int(targets.linear_pruned.sum()),
        "total_pruned": pruning.total_pruned,
        "total_zeros": pruning.total_zeros,
    }
    return {
        "format": RECORD_FORMAT,
        "model": pruning.model,
        "family": pruning.family,
        "method": pruner.method,
        **({"damping": pruner.damping} if pruner.method == "sparsegpt" else {}),
        **({"seed": pruner.seed} if pruner.method == "random" else {}),
        "compat": targets.compat,
        "pattern": None if targets.pattern is None else str(targets.pattern),
        "requested_sparsity": total["total_requested"] / total["total_weights"],
        **total,
        "calibration": None if pruning.tokens is None else asdict(pruning.tokens),
        "allocation": dict(targets.made),
        "blocks": [
            {
                "index": i,
                "linears": [
                    {
                        "name": name,
                        "sparsity": float(targets.linear_sparsity[i, j]),
                        "requested": int(targets.linear_pruned[i, j]),
                        **asdict(found),
                    }
                    for j, (name, found) in enumerate(block.items())
                ],
            }
            for i, block in enumerate(written.counts)
        ],
        "files": {
            "companions": list(written.companions),
            "left_out": list(written.left_out),
            "format_added": list(written.format_added),
        },
        "before": pruning.before,
        "run": {**asdict(pruning.run), "versions": dict(pruning.run.versions)},
    }
