"""The pruned model's files: the original's bytes, except for the linears that were pruned."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType

import numpy as np

from refimpl.loading.checkpoint import read_model
from refimpl.loading.composites import parts
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.floating_point import is_zero
from refimpl.model.layout import paste
from refimpl.model.model import Model
from refimpl.model.weight import StoredTensor, WeightFile
from refimpl.pruning.copied_files import (
    CONVERTED,
    PIECE,
    convert_weights,
    converted_header,
    copies,
    copy_file,
    copy_weights,
    header_bytes,
    with_format,
)
from refimpl.pruning.pruned_linears import PrunedLinear
from refimpl.storage.file_system import file_digest, is_own, remove
from refimpl.storage.folder import damaged


@dataclass(frozen=True)
class Counts:
    """Weights of one linear: ``zeros = pruned + kept_zeros``.

    Zeros are counted in the new file (-0.0 is one). Weights that stay are zero if they were, or if
    the stored dtype made them so. The method is None if it is that of the pruning.
    """

    weights: int
    pruned: int
    zeros: int
    kept_zeros: int
    method: str | None = None


@dataclass(frozen=True)
class Written:
    """What the new folder holds: counts per block and linear, and sorted names of copied files.

    `left_out` names what the model's folder holds and the new one does not; `format_added` the
    files whose metadata got `format: pt`, which older transformers require; `dequantised` the
    types of quantised tensors, with their dtype in the new file; `ignored` the other parts of a
    composite checkpoint, whose tensors are copied.
    """

    counts: tuple[Mapping[str, Counts], ...]
    companions: tuple[str, ...]
    left_out: tuple[str, ...]
    format_added: tuple[str, ...]
    dequantised: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def tensor_digest(tensor: StoredTensor) -> str:
    """SHA-256 of the bytes of a stored tensor."""
    digest = sha256()
    for piece in tensor.pieces():
        digest.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


class PrunedFiles:
    """The new model's files: copies, over which the pruned linears of each block are written.

    Names, order, dtypes, shapes and offsets of all tensors stay, and every byte of those that hold
    no pruned linear.

    The folder is empty, or what an earlier run left; `format_added` is what that run added when it
    had copied all files, `digests` are those of the stored tensors that it had pruned.
    """

    def __init__(
        self,
        model: Model,
        folder: Path,
        format_added: Sequence[str] | None = None,
        digests: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.copies, self._model, self._folder = copies(model), model, folder
        for path in folder.iterdir():
            if path.name not in self.copies.files:  # a record that a killed run was writing
                remove(path)
        self.format_added = tuple(self._copy() if format_added is None else format_added)
        if format_added is not None:
            self._check_copies()
        names = {file.path: file.path.name for file in model.files}
        if self.copies.converted:
            names = dict.fromkeys(names, CONVERTED)
        self._files = {path: SafetensorsFile(folder / name) for path, name in names.items()}
        if format_added is not None:
            self._check_tensors(digests)

    def open(self) -> Model:
        """Open the new model, as far as it is pruned."""
        model, config = self._model, self._folder / "config.json"
        whole = model.path.is_dir() or self.copies.converted
        path = self._folder if whole else self._folder / model.path.name
        return read_model(path, None if model.config_path is None else config)

    def write(self, block: int, linears: Iterable[tuple[str, PrunedLinear]]) -> dict[str, Counts]:
        """Write the pruned linears of a block, one by one, and count what the files hold then."""
        counts = {name: self._write(f"blocks.{block}.{name}.weight", x) for name, x in linears}
        return {n: counts[n] for n in self._model.config.linears[block] if n in counts}

    def written(self, counts: Mapping[int, Mapping[str, Counts]]) -> Written:
        """What the folder holds, with the counts of all blocks."""
        plan = self.copies
        of_blocks = tuple(counts[i] for i in sorted(counts))
        quantised = [x for x in plan.converted if x.kind != x.dtype]
        kinds = {x.kind: x.numpy_dtype.name for x in sorted(quantised, key=lambda x: x.kind)}
        companions = tuple(sorted(plan.companions))
        ignored = tuple(parts(x.name for x in self._model.ignored))
        return Written(of_blocks, companions, plan.left_out, self.format_added, kinds, ignored)

    def _copy(self) -> list[str]:
        """Copy all files; returns the names of those whose metadata got a format."""
        weights, companions = self.copies.weights.items(), self.copies.companions.items()
        if self.copies.converted:
            convert_weights(self.copies.converted, self._folder / CONVERTED)
            added = []
        else:
            added = [name for name, path in weights if copy_weights(path, self._folder / name)]
        for name, path in companions:
            copy_file(path, self._folder / name)
        return added

    def digests(self, block: int) -> dict[str, str]:
        """The digest of each stored tensor that holds linears of a block, as the new files are."""
        tensors = [self._files[x.file.path].tensors[x.name] for x in self._stored(block)]
        return {tensor.name: tensor_digest(tensor) for tensor in tensors}

    def _stored(self, block: int) -> list[StoredTensor]:
        """The tensors that hold linears of a block, in the original files."""
        names = (f"blocks.{block}.{name}.weight" for name in self._model.config.linears[block])
        stored = (self._model.weights[name].stored for name in names)
        return list({tensor.name: tensor for tensor in stored}.values())

    def _check_copies(self) -> None:
        """Refuse companions and headers of an earlier run that differ from the original's."""
        for name, path in self.copies.files.items():
            copy = self._folder / name
            if not is_own(copy):
                raise damaged(copy)
            if name in self.copies.companions:
                same = file_digest(path) == file_digest(copy)
            elif self.copies.converted:
                same = header_bytes(copy) == converted_header(self.copies.converted)
            else:
                old, new = header_bytes(path), header_bytes(copy)
                same = new == (with_format(old) if name in self.format_added else old)
                same &= copy.stat().st_size - len(new) == path.stat().st_size - len(old)
            if not same:
                raise damaged(copy)

    def _check_tensors(self, digests: Mapping[str, str]) -> None:
        """Refuse bytes of an earlier run that are damaged, but for tensors still to be pruned."""
        linears = {x.name for i in range(self._model.config.num_blocks) for x in self._stored(i)}
        sources = self._model.files[:1] if self.copies.converted else self._model.files
        for source in sources:
            copy = self._files[source.path]
            tensors = sorted(copy.tensors.values(), key=lambda x: x.offset)
            pruned = [x for x in tensors if x.name in digests]
            same = all(digests[x.name] == tensor_digest(x) for x in pruned)
            if self.copies.converted:
                others = [x for x in self.copies.converted if x.name not in linears]
                same &= all(tensor_digest(copy.tensors[x.name]) == tensor_digest(x) for x in others)
            else:  # all bytes but those of the linears, in whatever dtype
                at, end = 8 + len(header_bytes(copy.path)), copy.path.stat().st_size
                shift = end - source.path.stat().st_size
                held = [(x.offset, x.offset + x.nbytes) for x in tensors if x.name in linears]
                for start, after in [*held, (end, end)]:
                    same &= _same_bytes(copy, source, at, start, shift)
                    at = after
            if not same:
                raise damaged(copy.path)

    def _write(self, name: str, linear: PrunedLinear) -> Counts:
        """Write one linear over its part of a stored tensor, and count."""
        weight, keep, values = self._model.weights[name], linear.keep, linear.stored
        copy = self._files[weight.stored.file.path].tensors[weight.stored.name]
        offset, layout = copy.offset, weight.layout
        if layout.stack:
            (whole,) = copy.rows(slice(layout.expert, layout.expert + 1)).copy()
            layout = replace(layout, stack=0)
            offset += whole.nbytes * weight.layout.expert
        else:
            whole = copy.array.copy()
        paste(whole, values, layout)
        with copy.file.path.open("r+b") as file:
            file.seek(offset)
            file.write(whole.reshape(-1).view(np.uint8).data)
        return Counts(
            weights=values.size,
            pruned=values.size - int(np.count_nonzero(keep)),
            zeros=int(np.count_nonzero(is_zero(replace(weight, stored=copy).as_stored))),
            kept_zeros=int(np.count_nonzero(is_zero(values) & keep)),
            method=linear.method,
        )


def _same_bytes(copy: WeightFile, source: WeightFile, start: int, stop: int, shift: int) -> bool:
    """Whether a copy has the bytes of its source, which are `shift` bytes earlier there."""
    for at in range(start, stop, PIECE):
        size = min(PIECE, stop - at)
        if not np.array_equal(copy.read(at, size), source.read(at - shift, size)):
            return False
    return True
