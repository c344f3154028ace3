"""The files beside a model's weights that a copy of it has, too: tokenizer, settings, licence."""

import os
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from refimpl.errors import RefimplError
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


def refuse_links_away(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse to copy what links of a folder lead to outside it, or its repository in a cache.

    Whoever made the folder chose where a link leads, and the copy may be published.
    """
    real = Path(os.path.realpath(folder))  # Path.resolve raises at a loop of links
    above = (path.parent for path in real.parents if path.name == "snapshots")
    inside = (real, *(path / "blobs" for path in above if path.name.startswith("models--")))
    links = [path for path in sorted(paths) if path.parent == folder and path.is_symlink()]
    away = [
        x for x in links if not any(Path(os.path.realpath(x)).is_relative_to(y) for y in inside)
    ]
    if away:
        raise RefimplError(
            f"{folder} has links to files outside, which would be copied:",
            "files, or links to files in the folder; in the Hugging Face cache, links to blobs/ of "
            "the same repository",
            "if others may have such a file, put a copy in the place of the link, or remove the "
            "link",
            [f"{path.name} -> {os.path.realpath(path)}" for path in away],
        )
