"""The pruned model's files: the original's bytes, except for the linears that were pruned."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from refimpl.loading.checkpoint import read_model
from refimpl.loading.composites import parts
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.floating_point import is_zero
from refimpl.model.layout import paste
from refimpl.model.model import Model
from refimpl.pruning.copied_files import (
    CONVERTED,
    convert_weights,
    copies,
    copy_file,
    copy_weights,
)
from refimpl.pruning.pruned_linears import PrunedLinear, kept, stored_weight
from refimpl.pruning.record import FilesRecord


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


class PrunedFiles:
    """The new model's files: copies, over which the pruned linears of each block are written.

    Names, order, dtypes, shapes and offsets of all tensors stay, and every byte of those that hold
    no pruned linear.
    """

    def __init__(self, model: Model, folder: Path) -> None:
        self.copies, self._model, self._folder = copies(model), model, folder
        self.format_added = tuple(self._copy())
        names = {file.path: file.path.name for file in model.files}
        if self.copies.converted:
            names = dict.fromkeys(names, CONVERTED)
        self._files = {path: SafetensorsFile(folder / name) for path, name in names.items()}

    def open(self) -> Model:
        """Open the new model."""
        model, config = self._model, self._folder / "config.json"
        whole = model.path.is_dir() or self.copies.converted
        path = self._folder if whole else self._folder / model.path.name
        return read_model(path, None if model.config_path is None else config)

    def write(self, block: int, linears: Mapping[str, PrunedLinear]) -> dict[str, Counts]:
        """Write the pruned linears of a block, one by one, and count what the files hold then."""
        names = self._model.config.linears[block]
        return {name: self._write(block, name, linears[name]) for name in names if name in linears}

    def record(self, sha256: str | None = None) -> FilesRecord:
        """What became of the model's files; the digest is the new model's."""
        plan = self.copies
        quantised = [x for x in plan.converted if x.kind != x.dtype]
        kinds = {x.kind: x.numpy_dtype.name for x in sorted(quantised, key=lambda x: x.kind)}
        return FilesRecord(
            sha256=sha256,
            companions=tuple(sorted(plan.companions)),
            left_out=plan.left_out,
            format_added=self.format_added,
            dequantised=kinds,
            ignored=tuple(parts(x.name for x in self._model.ignored)),
        )

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

    def _write(self, block: int, name: str, linear: PrunedLinear) -> Counts:
        """Write one linear over its part of a stored tensor, and count."""
        weight = self._model.weights[f"blocks.{block}.{name}.weight"]
        keep, values = kept(linear, weight.shape), linear["stored"]
        values = stored_weight(self._model, block, name, keep) if values is None else values
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
            method=linear["method"],
        )
