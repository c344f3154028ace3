"""The pruned model's files: which are copied and how, and the linears written over the copies."""

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.loading.checkpoint import read_model
from refimpl.loading.files.documents import (
    Document,
    converted,
    parsed_json,
    plain,
    read_file,
)
from refimpl.loading.files.hub import INDEX_END, companion_files, refuse_links_away
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.model import Model, zeroed
from refimpl.model.ops import is_zero
from refimpl.model.weight import paste
from refimpl.pruning.block import PrunedLinear
from refimpl.pruning.record import LinearRecord
from refimpl.running.file_system import (
    DONE,
    is_folder,
    is_own,
    open_file,
    remove,
    replaced,
)
from refimpl.running.outputs import RECORD, SCORES, tree_to_disk


def copies(model: Model) -> dict[str, Path]:
    """Files of a model by their names in the new folder: its weights and their index, and others.

    A link out of the folder is refused.
    """
    files = {file.path.name: file.path for file in model.files}
    beside = [
        *model.folder.glob(f"*.safetensors{INDEX_END}")
    ]  # at most one, or it is refused
    indexes = [] if "model.safetensors" in files else beside  # which has precedence
    if not model.path.is_dir():
        indexes = [model.path] if model.path.name.endswith(INDEX_END) else []
    files |= companion_files(model.path, (RECORD, SCORES, *files))
    files |= {path.name: path for path in indexes}
    if model.config_path is not None:
        files["config.json"] = model.config_path
    refuse_links_away(
        model.folder, {*files.values(), model.folder / RECORD} - {model.path}
    )
    return files


class DoneBlocks(Document, frozen=True, kw_only=True):
    """What a run has written so far, and the digest of all that it depends on."""

    identity: str
    blocks: list[dict[str, LinearRecord]]


class PrunedFiles:
    """The new model's files: copies, over which the pruned linears of each block are written.

    Names, order, dtypes, shapes and offsets of all tensors stay, and every byte of those that hold
    no pruned linear. Beside the folder, a small file says which blocks of the copy are done; a run
    with the same `identity` continues after these.

    Args:
        model: The dense model.
        folder: The new folder, or the copy that an earlier run left.
        identity: All that the new weights depend on, as JSON.

    `counts` has the counts of every linear of the blocks that are done, whose `sparsity` and
    `requested` are still 0, and `pruned` is the new model.
    """

    def __init__(self, model: Model, folder: Path, identity: Mapping[str, Any]) -> None:
        self._model, self._folder, files = model, folder, copies(model)
        self._identity = sha256(
            json.dumps(identity, sort_keys=True).encode()
        ).hexdigest()
        self.counts = self._earlier()
        if not self.counts:
            remove(folder)
            folder.mkdir()
            for name, path in files.items():
                with open_file(path) as file, (folder / name).open("wb") as copy:
                    shutil.copyfileobj(file, copy, 1 << 20)
        self._files = {
            x.path: SafetensorsFile(folder / x.path.name) for x in model.files
        }
        path = folder if model.path.is_dir() else folder / model.path.name
        self.pruned = read_model(path, model.config_path and folder / "config.json")

    def write(
        self, block: int, linears: Mapping[str, PrunedLinear]
    ) -> dict[str, LinearRecord]:
        """Write some pruned linears of a block over the copy, and count what it holds then."""
        return {
            name: self._write(block, name, linear) for name, linear in linears.items()
        }

    def finish(self, counts: Mapping[str, LinearRecord]) -> None:
        """Bring the next block, whose linears have these counts, to the disk; it is done."""
        tree_to_disk(self._folder)
        names = self._model.config.linears[len(self.counts)]
        self.counts.append({name: counts[name] for name in names if name in counts})
        with replaced(self._folder.parent / DONE) as beside:
            done = DoneBlocks(identity=self._identity, blocks=self.counts)
            beside.write_text(json.dumps(plain(done)), "utf-8")

    def _earlier(self) -> list[dict[str, LinearRecord]]:
        """The blocks that an earlier run of the same has done."""
        path = self._folder.parent / DONE
        if is_own(path) and is_folder(self._folder):
            with suppress(ValueError, OSError):
                done: DoneBlocks = converted(parsed_json(read_file(path)), DoneBlocks)
                return done.blocks if done.identity == self._identity else []
        return []

    def _write(self, block: int, name: str, linear: PrunedLinear) -> LinearRecord:
        """Write one linear over its part of a stored tensor, and count."""
        weight = self._model.weights[f"blocks.{block}.{name}.weight"]
        keep = linear.keep
        values = zeroed(weight.as_stored, keep) if linear.new is None else linear.new
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
        return LinearRecord(
            name=name,
            sparsity=0.0,
            requested=0,
            weights=values.size,
            pruned=values.size - int(np.count_nonzero(keep)),
            zeros=int(
                np.count_nonzero(is_zero(replace(weight, stored=copy).as_stored))
            ),
            kept_zeros=int(np.count_nonzero(is_zero(values) & keep)),
            method=linear.method,
        )
