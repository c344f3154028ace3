"""The files beside a model's weights: tokenizer, settings, licence; some are made when needed."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from refimpl.loading.files.hub import COMPANIONS
from refimpl.loading.files.refused_formats import CONVERSIONS

INDEX = ".index.json"
OTHERS = (INDEX, ".onnx.data")
WEIGHTS = {".safetensors", *CONVERSIONS, ".ot", ".npz", ".pkl", ".tflite", ".onnx_data", ".mlmodel"}


def companion_files(path: Path, others: Iterable[str]) -> dict[str, Path]:
    """Files by name: of a folder all but weights and `others`; of a file those in `COMPANIONS`."""
    folder, skipped = path if path.is_dir() else path.parent, {"config.json", *others}

    def belongs(name: str) -> bool:
        if path.is_dir():
            return Path(name).suffix.lower() not in WEIGHTS and not name.endswith(OTHERS)
        return any(fnmatch(name, pattern) for pattern in COMPANIONS)

    entries = [x for x in sorted(folder.iterdir()) if x.is_file() and x.name not in skipped]
    return {entry.name: entry for entry in entries if belongs(entry.name)}


@dataclass(eq=False)
class Companions:
    """The companions of weights that become other files: some exist, others are made."""

    config: Mapping[str, Any]
    beside: Mapping[str, Path]
    write: Callable[[Path], None] = lambda _: None
    _folder: Path | None = None

    def __call__(self) -> dict[str, Path]:
        """The files by their names; those that are made are in a folder of this process."""
        if self._folder is None:
            folder = Path(mkdtemp(prefix="refimpl-"))
            finalize(self, rmtree, folder, ignore_errors=True)
            (folder / "config.json").write_text(json.dumps(self.config, indent=1), "utf-8")
            self.write(folder)
            self._folder = folder
        return {**self.beside, **{path.name: path for path in sorted(self._folder.iterdir())}}
