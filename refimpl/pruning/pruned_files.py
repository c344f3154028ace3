"""The pruned model's files: which are copied and how, and the linears written over the copies."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.checkpoint import read_model
from refimpl.loading.config_json import counted_parts
from refimpl.loading.files.documents import Document, converted, parsed_json, plain, read_file
from refimpl.loading.files.hub import INDEX_END, companion_files, refuse_links_away
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.model import Model, zeroed
from refimpl.model.ops import is_zero
from refimpl.model.weight import count_bad, paste
from refimpl.pruning.block import PrunedLinear
from refimpl.pruning.record import FilesRecord
from refimpl.running.file_system import (
    DONE,
    is_folder,
    is_own,
    open_file,
    remove,
    replaced,
)
from refimpl.running.files import RECORD, SCORES, tree_to_disk

PIECE = 1 << 20  # bytes copied at once
SPARE = 1 << 20  # bytes: the record, and what files leave free of their last pages


@dataclass(frozen=True)
class Copies:
    """Files of a model by their names in the new folder: its weights, and all others to copy.

    `left_out` names what else its folder holds, folders with a slash.
    """

    weights: Mapping[str, Path]
    companions: Mapping[str, Path]
    left_out: tuple[str, ...]

    @property
    def files(self) -> dict[str, Path]:
        """All files by their names in the new folder."""
        return {**self.weights, **self.companions}

    @property
    def needed_bytes(self) -> int:
        """Room that the new folder takes on a disk, in bytes."""
        return SPARE + sum(path.stat().st_size for path in self.files.values())


def copies(model: Model) -> Copies:
    """Find which files of a model are copied: its weights, the index in use, and its companions.

    A link out of the folder is refused.
    """
    weights = {file.path.name: file.path for file in model.files}
    companions = companion_files(model.path, (RECORD, SCORES, *weights))
    if index := _index(model, weights):
        companions[index] = model.folder / index
    if model.config_path is not None:
        companions["config.json"] = model.config_path
    entries = sorted(model.folder.iterdir()) if model.path.is_dir() else []
    left = [x for x in entries if x.name not in weights.keys() | companions.keys()]
    names = tuple(f"{entry.name}/" if entry.is_dir() else entry.name for entry in left)
    plan = Copies(weights, companions, names)
    refuse_links_away(model.folder, {*plan.files.values(), model.folder / RECORD} - {model.path})
    return plan


def _index(model: Model, weights: Mapping[str, Path]) -> str | None:
    """The name of the index that led to the weights; `model.safetensors` has precedence."""
    if not model.path.is_dir():
        return model.path.name if model.path.name.endswith(INDEX_END) else None
    if "model.safetensors" in weights:
        return None
    paths = model.folder.glob(f"*.safetensors{INDEX_END}")
    return next((path.name for path in paths), None)  # at most one, or reading had refused it


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


class Done(Document, frozen=True, kw_only=True):
    """What a run has written so far: counts of every linear of its first blocks.

    `identity` is the digest of all that they depend on.
    """

    identity: str
    blocks: list[dict[str, Counts]]


class PrunedFiles:
    """The new model's files: copies, over which the pruned linears of each block are written.

    Names, order, dtypes, shapes and offsets of all tensors stay, and every byte of those that hold
    no pruned linear. Beside the folder, a small file says which blocks of the copy are done; a run
    with the same `identity` continues after these.

    Args:
        model: The dense model.
        folder: The new folder, or the copy that an earlier run left.
        identity: All that the new weights depend on, as JSON.

    `counts` has the counts of every linear of the blocks that are done, and `pruned` is the new
    model.
    """

    def __init__(self, model: Model, folder: Path, identity: Mapping[str, Any]) -> None:
        self.copies, self._model, self._folder = copies(model), model, folder
        self._identity = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.counts, self._block = list[Mapping[str, Counts]](), dict[str, Counts]()
        if (done := self._earlier()) is not None:
            self.counts.extend(done.blocks)
        else:
            remove(folder)
            folder.mkdir()
            for name, path in self.copies.files.items():
                with open_file(path) as file, (folder / name).open("wb") as copy:
                    shutil.copyfileobj(file, copy, PIECE)
        names = {file.path: file.path.name for file in model.files}
        self._files = {path: SafetensorsFile(folder / name) for path, name in names.items()}
        config = folder / "config.json"
        path = folder if model.path.is_dir() else folder / model.path.name
        self.pruned = read_model(path, None if model.config_path is None else config)

    def write(self, block: int, linears: Mapping[str, PrunedLinear]) -> dict[str, Counts]:
        """Write some pruned linears of a block over the copy, and count what it holds then."""
        counts = {name: self._write(block, name, linear) for name, linear in linears.items()}
        self._block |= counts
        return counts

    def finish(self) -> None:
        """Bring the block that was written to the disk, and note that it is done."""
        names = self._model.config.linears[len(self.counts)]
        counts = {name: self._block[name] for name in names if name in self._block}
        paths = {file.path for file in self._files.values()} if self.counts else {self._folder}
        for path in sorted(paths):
            tree_to_disk(path)
        self.counts.append(counts)
        self._block = {}
        done = Done(identity=self._identity, blocks=[dict(x) for x in self.counts])
        with replaced(self._folder.parent / DONE) as beside:
            beside.write_text(json.dumps(plain(done)), "utf-8")

    def _earlier(self) -> Done | None:
        """What an earlier run of the same has done; None without one that is whole."""
        path = self._folder.parent / DONE
        if is_own(path) and is_folder(self._folder):
            with suppress(ValueError, OSError):
                done: Done = converted(parsed_json(read_file(path)), Done)
                return done if done.identity == self._identity else None
        return None

    def record(self, sha256: str | None = None) -> FilesRecord:
        """What became of the model's files; the digest is the new model's."""
        plan = self.copies
        return FilesRecord(
            sha256=sha256,
            companions=tuple(sorted(plan.companions)),
            left_out=plan.left_out,
            ignored=tuple(counted_parts(x.name for x in self._model.ignored)),
        )

    def _write(self, block: int, name: str, linear: PrunedLinear) -> Counts:
        """Write one linear over its part of a stored tensor, and count."""
        weight = self._model.weights[f"blocks.{block}.{name}.weight"]
        keep = linear.keep
        values = zeroed(weight.as_stored, keep) if linear.new is None else linear.new
        if bad := count_bad(values):
            raise RefimplError(
                f"blocks.{block}.{name}: {bad} of {values.size} weights are NaN or Inf",
                "finite weights",
                "repair or replace the checkpoint",
            )
        copy = self._files[weight.stored.file.path].tensors[weight.stored.name]
        offset, layout = copy.offset, weight.layout
        if layout.stack:
            (stored,) = copy.rows(slice(layout.expert, layout.expert + 1)).copy()
            layout = replace(layout, stack=0)
            offset += stored.nbytes * weight.layout.expert
        else:
            stored = copy.array.copy()
        paste(stored, values, layout)
        with copy.file.path.open("r+b") as file:
            file.seek(offset)
            file.write(stored.reshape(-1).view(np.uint8).data)
        return Counts(
            weights=values.size,
            pruned=values.size - int(np.count_nonzero(keep)),
            zeros=int(np.count_nonzero(is_zero(replace(weight, stored=copy).as_stored))),
            kept_zeros=int(np.count_nonzero(is_zero(values) & keep)),
            method=linear.method,
        )
