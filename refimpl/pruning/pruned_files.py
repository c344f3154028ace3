"""The pruned model's files: the original's bytes, but for the linears that were pruned."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.safetensors_file import SafetensorsFile
from refimpl.model.layout import cut, join
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.weight import count_bad
from refimpl.pruning.checkpoint import Counts as Counts
from refimpl.pruning.checkpoint import KeptBlocks
from refimpl.pruning.copied_files import Copies, copies, copy_weights

Shared = Mapping[str, Sequence[str]]
"""Our names of the weights in each stored tensor, in the order of their rows."""


@dataclass(frozen=True)
class PrunedLinear:
    """What pruning decided about one linear.

    Args:
        keep: [out, in], True = stays.
        weight: [out, in], new values of those that stay, of any float dtype; None leaves them as
            they are stored.
    """

    keep: Array
    weight: Array | None = None


@dataclass(frozen=True)
class Rewritten:
    """What was written.

    Args:
        counts: Per block, of every linear that was pruned.
        companions: Names of the files that were copied as they are, sorted.
        left_out: Names of what was in the model's folder and is not in the new one.
        format_added: Files whose metadata got `format: pt`, which older transformers ask for.
    """

    counts: tuple[Mapping[str, Counts], ...]
    companions: tuple[str, ...]
    left_out: tuple[str, ...]
    format_added: tuple[str, ...]


def rewrite(
    model: Model,
    into: Path,
    blocks: Iterable[tuple[int, Mapping[str, PrunedLinear]]],
    kept: KeptBlocks | None = None,
    states: Callable[[], Sequence[Array]] = tuple,
) -> Rewritten:
    """Copy a model's files, and write the pruned linears of each block over the copies.

    Names, order, dtypes, shapes and offsets of all tensors stay, and every byte of those that hold
    no pruned linear. One block is in memory at a time.

    Args:
        model: From `read_model`.
        into: An empty folder, or what an earlier run left.
        blocks: Index of each block and its pruned linears by name, once each; in any order, unless
            they are kept. None of those that are done.
        kept: Keeps what is done, and says what an earlier run did.
        states: What to keep with the block that came last.

    Returns:
        Counts, and what was copied.

    Raises:
        RefimplError: A decision of another shape than its linear, new weights that the stored
            dtype cannot hold, a linear that shares its tensor with something else.
        OSError: A file that cannot be read or written.
        ValueError: Blocks that are missing or come twice.

    Source:
        The format: safetensors (a peer), whose library checks each copy's header here and reads
        the results in the tests.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from refimpl import read_model
        >>> model = read_model("fixtures/llama")
        >>> keep = np.tile([True, False], (32, 16))   # every other input of q_proj goes
        >>> with TemporaryDirectory() as folder:
        ...     blocks = ((i, {"q_proj": PrunedLinear(keep)}) for i in range(4))
        ...     rewrite(model, Path(folder), blocks).counts[3]["q_proj"]
        Counts(weights=1024, pruned=512, zeros=512, kept_zeros=0)
    """
    plan = copies(model)
    for path in into.iterdir():
        if path.name not in plan.files:  # a record that a killed run was about to write
            path.unlink()
    added = None if kept is None else kept.added
    if added is None:
        added = _copied(plan, into)
        if kept is not None:
            kept.copied(added)
    files = {file.path: SafetensorsFile(into / file.path.name) for file in model.files}
    shared = _shared(model)
    counts: dict[int, Mapping[str, Counts]] = {} if kept is None else kept.counts
    for index, linears in blocks:
        if index in counts:
            raise ValueError(f"block {index} came twice")
        counts[index] = _write_block(model, index, linears, files, shared)
        for file in (*model.files, *files.values()):
            file.release()
        if kept is not None:
            kept.add(index, counts[index], states())
    if set(counts) != set(range(model.config.num_blocks)):
        raise ValueError(f"of {model.config.num_blocks} blocks, {sorted(counts)} came")
    return Rewritten(
        tuple(counts[i] for i in range(model.config.num_blocks)),
        tuple(sorted(plan.companions)),
        plan.left_out,
        added,
    )


def _copied(plan: Copies, into: Path) -> tuple[str, ...]:
    """Copy all files; names of those whose metadata got a format."""
    added = tuple(name for name, path in plan.weights.items() if copy_weights(path, into / name))
    for name, path in plan.companions.items():
        shutil.copyfile(path, into / name)
    return added


def stored_weight(model: Model, block: int, linear: str, pruned: PrunedLinear) -> Array:
    """Return a linear's weights as the new file will hold them.

    ``W'_ij = keep_ij ? round(weight_ij) : +0``, rounded to the stored dtype, half to even.

    Args:
        model: From `read_model`.
        block: The block, from 0.
        linear: Name of the linear.
        pruned: What was decided.

    Returns:
        [out, in], in the stored dtype.

    Raises:
        RefimplError: Another shape than the linear's, or new weights that are NaN or Inf, or
            become so in the stored dtype.

    Source:
        ours; float64 goes to bfloat16 by way of float32, as in torch (a peer).
    """
    name = f"blocks.{block}.{linear}"
    weight = model.weights[f"{name}.weight"]
    stored = cut(weight.stored.array, weight.layout)
    new = stored if pruned.weight is None else pruned.weight
    if pruned.keep.shape != stored.shape or new.shape != stored.shape or pruned.keep.dtype != bool:
        raise RefimplError(
            f"{name}: keep {pruned.keep.dtype} {list(pruned.keep.shape)}, weights "
            f"{list(new.shape)}",
            f"both {list(stored.shape)}, keep of bool",
            "decide about this model's linears",
        )
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # looked for right after
        values = np.where(pruned.keep, new.astype(stored.dtype, copy=False), stored.dtype.type(0))
    if pruned.weight is not None and (bad := count_bad(values)):
        raise RefimplError(
            f"{name}: {bad} of {values.size} new weights are NaN, Inf, or beyond "
            f"{stored.dtype.name}",
            f"weights within the range of {stored.dtype.name}",
            "use a greater damping, or convert the model to bfloat16 or float32 first",
        )
    return values


def _shared(model: Model) -> Shared:
    """Our names of the weights in each stored tensor, in the order of their rows."""
    found: dict[str, list[str]] = {}
    for name, weight in sorted(model.weights.items(), key=lambda item: item[1].layout.index):
        found.setdefault(weight.stored.name, []).append(name)
    return found


def _write_block(
    model: Model,
    block: int,
    linears: Mapping[str, PrunedLinear],
    files: Mapping[Path, SafetensorsFile],
    shared: Shared,
) -> dict[str, Counts]:
    """Write the tensors that hold a block's pruned linears, and count what is in the file then."""
    ours = {f"blocks.{block}.{linear}.weight": linear for linear in linears}
    counts: dict[str, Counts] = {}
    for tensor in dict.fromkeys(model.weights[name].stored.name for name in ours):
        names = shared[tensor]
        weights = [model.weights[name] for name in names]
        stored, layout = weights[0].stored, weights[0].layout
        alone = all(name.startswith(f"blocks.{block}.") for name in names)
        if not alone or [w.layout.index for w in weights] != list(range(max(1, len(layout.rows)))):
            raise RefimplError(
                f"{stored.file.path}: {tensor} holds {', '.join(names)}",
                "linears that share their tensor with none but linears of their block",
                "save the model with a tensor for each",
            )
        parts = [
            stored_weight(model, block, ours[name], linears[ours[name]])
            if name in ours
            else cut(stored.array, weight.layout)
            for name, weight in zip(names, weights, strict=True)
        ]
        copy = files[stored.file.path].tensors[tensor]
        with copy.file.path.open("r+b") as file:
            file.seek(copy.offset)
            file.write(join(parts, layout).reshape(-1).view(np.uint8).data)
        for name, weight, part in zip(names, weights, parts, strict=True):
            if name in ours:
                keep = linears[ours[name]].keep
                counts[ours[name]] = Counts(
                    weights=keep.size,
                    pruned=keep.size - int(np.count_nonzero(keep)),
                    zeros=int(np.count_nonzero(cut(copy.array, weight.layout) == 0)),
                    kept_zeros=int(np.count_nonzero((part == 0) & keep)),
                )
    return {name: counts[name] for name in linears}
