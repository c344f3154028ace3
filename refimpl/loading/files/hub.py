"""The folder of a model, or its id in the Hugging Face cache, and the files beside the weights."""

import os
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

from refimpl.errors import RefimplError, listed, reading
from refimpl.loading.files.safetensors_file import CONVERSIONS, shard_of_tensor

COMPANIONS = (  # copied when a model is pruned
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
    "README*",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "model-*.safetensors")
INDEX_END = ".index.json"
# What is no companion in a folder: by suffix, and by end of the name
LEFT = {
    ".safetensors",
    *CONVERSIONS,
    ".ot",
    ".npz",
    ".pkl",
    ".tflite",
    ".onnx_data",
    ".mlmodel",
}
LEFT_ENDS = (INDEX_END, ".onnx.data")
LARGEST = 1 << 30  # bytes of a companion
DOWNLOADED = ("config.json", *WEIGHTS, *COMPANIONS)

_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9][\w./-]*))?", re.ASCII)
_PLAIN_NAME = re.compile(r"[\w.-]+", re.ASCII)
COMMIT, ETAG = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_EXPECTED = (
    "a path that exists, or an id in the Hugging Face cache: ORG/NAME[@REVISION]"
)
# Its client Xet receives files where nothing bounds them. To tell the server what else runs, it
# reads a list from there, whatever its length.
_SETTINGS = dict.fromkeys(("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY"), True)
_LOCK = Lock()  # of the settings, which belong to the whole process


def local_files(model: str | Path, download: bool = False) -> tuple[Path, str | None]:
    """The path of a model's files, and its id with the commit if it is one of the hub.

    A path that exists is a path. If no server answers, the cache does.
    """
    path, match = Path(model), _ID.fullmatch(str(model))
    with reading(path, _EXPECTED):
        if path.exists():
            return path, None
    if match is None or ".." in match[0] or "//" in match[0] or "--" in match[0]:
        return path, None
    repository, revision = match[1], match[2] or "main"
    with _library(path) as hub:
        offline = hub.constants.is_offline_mode()
        if download and not offline:
            _download(hub, repository, revision)
        snapshot = _snapshot(hub, repository, revision)
    unset = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, and " * offline
    if snapshot is None:
        raise RefimplError(
            f"{model}: no such file or folder, and the cache {hub.constants.HF_HUB_CACHE} holds no "
            f"revision {revision} of such a model",
            _EXPECTED,
            f"check the path, or {unset}add `download`",
        )
    name = f"{repository}@{snapshot.name}"
    if missing := _missing(snapshot):
        raise RefimplError(
            f"{name}: the cache lacks {listed(missing)} ({snapshot})",
            f"config.json, and {WEIGHTS[0]} or {INDEX} with all its shards",
            f"if the repository holds these files, {unset}pass {name} with `download`; of a "
            "repository of GGUF files, get one with hf download, and pass it to refimpl convert",
        )
    return snapshot, name


@contextmanager
def _library(path: Path) -> Iterator[ModuleType]:
    """huggingface_hub, which is imported here alone, with our settings while it is used here."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise RefimplError(
            f"{path}: no such file or folder, and huggingface_hub, which finds ids, is missing",
            "a path that exists, or for an id, refimpl with its extra [hub]",
            "check the path, or run pip install 'refimpl[hub]'",
        ) from error
    settings = vars(huggingface_hub.constants)
    with _LOCK:
        before = {name: settings[name] for name in _SETTINGS}
        settings.update(_SETTINGS)
        try:
            yield huggingface_hub
        finally:
            settings.update(before)


def _snapshot(hub: ModuleType, repository: str, revision: str) -> Path | None:
    """The folder of a revision in the cache, whole or not; None if it is not there."""
    try:
        found = hub.snapshot_download(
            repository, revision=revision, local_files_only=True, allow_patterns=[]
        )
    except (OSError, ValueError):
        return None
    folder = Path(found)
    is_ours = COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots"
    return folder if is_ours else None


def _missing(snapshot: Path) -> list[str]:
    """The files that a snapshot lacks: of its weights, and `config.json`."""
    with reading(snapshot, _EXPECTED):
        present = {entry.name for entry in snapshot.iterdir() if entry.exists()}
        needed = {"config.json"}
        if INDEX in present and WEIGHTS[0] not in present:
            needed |= set(shard_of_tensor(snapshot / INDEX).values())
        elif not any(
            Path(name).suffix in (".safetensors", *CONVERSIONS) for name in present
        ):
            needed |= {WEIGHTS[0]}
    return sorted(needed - present)


def _download(hub: ModuleType, repository: str, revision: str) -> None:
    """Download what the cache lacks of a revision; the library prints nothing but its bar."""
    logging = hub.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _download_absent(hub, repository, revision)
    except RefimplError:
        raise
    except Exception as error:  # of the library, of its HTTP client, or of the disk
        answered = isinstance(error, hub.errors.HfHubHTTPError)
        snapshot = None if answered else _snapshot(hub, repository, revision)
        if snapshot is None or _missing(snapshot):
            raise _refusal(hub, error, repository, revision) from error
    finally:
        logging.set_verbosity(verbosity)


def _download_absent(hub: ModuleType, repository: str, revision: str) -> None:
    """Check what the server answers, before the library makes names of files of it; download."""
    listing = hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    commit = listing.sha
    _check(hub, COMMIT, commit, "the commit", "40 hexadecimal digits")
    sizes: dict[str, Any] = {x.rfilename: x.size for x in listing.siblings}
    plain = [name for name in sizes if _PLAIN_NAME.fullmatch(name)]
    wanted = [name for name in plain if any(fnmatchcase(name, x) for x in DOWNLOADED)]
    cached = (
        hub.try_to_load_from_cache(repository, name, revision=commit) for name in wanted
    )
    absent = [
        name
        for name, path in zip(wanted, cached, strict=True)
        if not isinstance(path, str)
    ]
    absent = absent or wanted[:1]  # one at least, which notes the branch's commit
    for name in absent:
        url = hub.hf_hub_url(repository, name, revision=revision)
        facts, of = hub.get_hf_file_metadata(url), f"for {name} the"
        _check(
            hub,
            re.compile(commit),
            facts.commit_hash,
            f"{of} commit",
            f"{commit}, as listed",
        )
        _check(hub, ETAG, facts.etag, f"{of} ETag", "40 hexadecimal digits, or 64")
        _check(
            hub, re.compile(r"\d{1,19}"), str(sizes[name]), f"{of} size", "its bytes"
        )
    cache = Path(hub.constants.HF_HUB_CACHE)
    disk = next(x for x in (cache, *cache.parents) if x.exists())
    needed, free = sum(sizes[x] for x in absent), shutil.disk_usage(disk).free
    if free < needed:
        problem = f"{repository}@{revision} has {needed:,} bytes, and {free:,} are free in {disk}"
        more = "free some space, or set HF_HUB_CACHE to another disk"
        raise RefimplError(problem, "room for all files", more)
    for name in absent:
        bar = _bounded_bar(hub, sizes[name])
        hub.hf_hub_download(repository, name, revision=revision, tqdm_class=bar)


def _check(
    hub: ModuleType, pattern: re.Pattern[str], value: object, what: str, expected: str
) -> None:
    """Refuse an answer of the server that is not of this form."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise RefimplError(
            f"{hub.constants.ENDPOINT} gives {what} {value!r:.80}",
            expected,
            "check HF_ENDPOINT; if a new commit has just been made, repeat the command",
        )


def _bounded_bar(hub: ModuleType, most: int) -> type:
    """The library's progress bar, which ends a download of more than `most` bytes."""

    class BoundedBar(hub.utils.tqdm):  # type: ignore[misc, name-defined]
        received = 0

        def update(self, n: int = 1) -> Any:
            self.received += n
            if self.received > most:
                raise ValueError(
                    f"a file of more than the {most:,} bytes that it should have"
                )
            return super().update(n)

    return BoundedBar


def _refusal(
    hub: ModuleType, error: Exception, repository: str, revision: str
) -> RefimplError:
    """Why a download failed."""
    endpoint, login = (
        hub.constants.ENDPOINT,
        "log in with `hf auth login`, or set HF_TOKEN",
    )
    match error:
        case hub.errors.RevisionNotFoundError():
            problem = f"{repository} has no revision {revision}"
            expected = f"a branch, a tag or a whole commit of {endpoint}/{repository}"
            remedy = f"check the revision, or omit @{revision}"
        case hub.errors.RepositoryNotFoundError():
            problem = f"{endpoint} has no model {repository}, or it is gated or private"
            expected = "a model that this account may download"
            remedy = (
                f"check the id, ask for access at {endpoint}/{repository}, and {login}"
            )
        case _:
            problem = f"{repository}@{revision} cannot be downloaded from {endpoint} ({error})"
            expected = "a server that can be reached, and a whole download"
            remedy = "check the network and HF_ENDPOINT, and run the command again: it goes on"
    return RefimplError(problem, expected, remedy)


def companion_files(path: Path, others: Iterable[str]) -> dict[str, Path]:
    """Files by name: of a folder all but weights and `others`; of a file those in `COMPANIONS`.

    One that is too large to be copied is refused.
    """
    folder, skipped = path if path.is_dir() else path.parent, {"config.json", *others}

    def belongs(name: str) -> bool:
        if path.is_dir():
            return Path(name).suffix.lower() not in LEFT and not name.endswith(
                LEFT_ENDS
            )
        return any(fnmatch(name, pattern) for pattern in COMPANIONS)

    entries = [
        x for x in sorted(folder.iterdir()) if x.is_file() and x.name not in skipped
    ]
    found = {entry.name: entry for entry in entries if belongs(entry.name)}
    sizes = {name: entry.stat().st_size for name, entry in found.items()}
    if large := [
        f"{name}: {size:,} bytes" for name, size in sizes.items() if size > LARGEST
    ]:
        raise RefimplError(
            f"{folder} has large files beside the weights, which would be copied:",
            f"files of at most {LARGEST:,} bytes",
            "move what the model does not need to another folder",
            large,
        )
    return found


def refuse_links_away(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse to copy what links of a folder lead to outside it, or its repository in a cache.

    Whoever made the folder chose where a link leads, and the copy may be published.
    """
    real = Path(os.path.realpath(folder))  # Path.resolve raises at a loop of links
    above = (path.parent for path in real.parents if path.name == "snapshots")
    inside = (
        real,
        *(path / "blobs" for path in above if path.name.startswith("models--")),
    )
    links = [
        path for path in sorted(paths) if path.parent == folder and path.is_symlink()
    ]
    away = [
        x
        for x in links
        if not any(Path(os.path.realpath(x)).is_relative_to(y) for y in inside)
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
