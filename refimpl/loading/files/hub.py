"""Models of the Hugging Face hub: found in its cache, and downloaded if the user asks for it."""

import os
import re
import sys
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import reading
from refimpl.loading.files.refused_formats import CONVERSIONS
from refimpl.loading.files.weight_files import shard_of_tensor

COMPANIONS = (  # copied when a model is pruned
    "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "chat_template.json",
    "README*", "LICENSE*", "NOTICE*", "USE_POLICY*",
)  # fmt: skip
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "model-*.safetensors")
DOWNLOADED = ("config.json", *WEIGHTS, *COMPANIONS)

_NAME = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_ID = re.compile(rf"({_NAME}/{_NAME})(?:@([A-Za-z0-9][\w./-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CACHED = re.compile(r"models--[\w.-]+", re.ASCII)  # a repository's folder in the cache
_EXPECTED = "a path that exists, or an id in the Hugging Face cache: ORG/NAME or ORG/NAME@REVISION"


def local_files(model: str | Path, download: bool = False) -> tuple[Path, str | None]:
    """The path of a model's files, and its id with the commit if it is one of the hub.

    A path that exists is a path; one in the cache has an id, too. Anything else of the form
    `org/name` or `org/name@revision` is looked up in the cache. With `download`, the server is
    asked first, as `hf download` asks it; offline mode and a server that cannot be reached leave
    what the cache holds.
    """
    path, match = Path(model), _ID.fullmatch(str(model))
    with reading(path, _EXPECTED):
        if path.exists():
            return _of_cache(path)
    if match is None or re.search(r"\.\.|--|//", str(model)):
        return path, None
    repository, revision = match[1], match[2] or "main"
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise RefimplError(
            f"{model}: no such file or folder, and huggingface_hub, which finds ids, is missing",
            "a path that exists, or for an id, refimpl with its extra [hub]",
            "check the path, or run pip install 'refimpl[hub]'",
        ) from error
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    offline = constants.HF_HUB_OFFLINE
    if download and not offline:
        snapshot: Path | None = _downloaded(repository, revision, constants.ENDPOINT)
    else:
        snapshot = _snapshot(folder, revision)
    if snapshot is None:
        raise RefimplError(
            f"{model}: no such file or folder, and the cache {folder.parent} holds no revision "
            f"{revision} of such a model",
            _EXPECTED,
            _remedy(repository, revision, "check the path", offline),
        )
    return _whole(snapshot, repository, offline)


def _of_cache(path: Path) -> tuple[Path, str | None]:
    """An existing path: a snapshot of the cache or a file in it has an id, others have none."""
    whole = Path(os.path.abspath(path))  # a link keeps its own name
    for folder in (whole, *whole.parents)[:4]:
        if not _CACHED.fullmatch(folder.name) or not (folder / "snapshots").is_dir():
            continue
        repository, inside = folder.name[8:].replace("--", "/"), whole.relative_to(folder).parts
        if len(inside) > 1 and inside[0] == "snapshots":
            snapshot = folder.joinpath(*inside[:2])
            if whole != snapshot:
                return path, f"{repository}@{snapshot.name}"
            return _whole(path, repository, offline=False)
        if inside:
            break
        snapshots = [entry for entry in (folder / "snapshots").iterdir() if entry.is_dir()]
        only = snapshots[0] if len(snapshots) == 1 else None
        if (found := _snapshot(folder, "main") or only) is None:
            raise RefimplError(
                f"{path} holds {len(snapshots)} snapshots, and none is the main revision",
                "one snapshot, or a main revision",
                f"name one of {folder / 'snapshots'}",
            )
        return _whole(found, repository, offline=False)
    return path, None


def _snapshot(folder: Path, revision: str) -> Path | None:
    """The folder of a revision in a repository's folder of the cache; None if it is not there."""
    commit, ref = revision, folder / "refs" / revision
    with reading(ref, _EXPECTED):
        if ref.is_file():
            commit = ref.read_text("utf-8", "replace").strip()
        found = folder / "snapshots" / commit
        return found if _COMMIT.fullmatch(commit) and found.is_dir() else None


def _whole(snapshot: Path, repository: str, offline: bool) -> tuple[Path, str]:
    """A snapshot and its id, if all files of its weights are there."""
    commit = snapshot.name
    with reading(snapshot, _EXPECTED):
        entries = {entry.name: entry for entry in snapshot.iterdir()}
        missing = [name for name, entry in entries.items() if not entry.exists()]
        needed = {"config.json"}
        if INDEX in entries and INDEX not in missing and "model.safetensors" not in entries:
            needed |= set(shard_of_tensor(entries[INDEX]).values())
        elif not any(Path(name).suffix in (".safetensors", *CONVERSIONS) for name in entries):
            needed |= {"model.safetensors"}
    if missing := sorted({*missing, *needed - entries.keys()}):
        raise RefimplError(
            f"{repository}@{commit}: the cache lacks {', '.join(missing)} ({snapshot})",
            f"config.json, and {WEIGHTS[0]} or {INDEX} with all its shards",
            _remedy(repository, commit, "if the repository holds these files", offline),
        )
    return snapshot, f"{repository}@{commit}"


def _downloaded(repository: str, revision: str, endpoint: str) -> Path:
    """Download what is missing of a revision, with the progress bar of the library."""
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        """The library's bar, on a terminal alone."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            silent = options.pop("disable", None) or not sys.stderr.isatty()
            super().__init__(*arguments, **options, disable=silent)

    name = f"{repository}@{revision}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*DOWNLOADED],
                ignore_patterns="*/*",
                tqdm_class=Bar,
            )
        )
    except errors.GatedRepoError as error:
        raise RefimplError(
            f"{name} is gated: {endpoint} does not give it to this account",
            "a model that this account may download",
            f"ask for access at {endpoint}/{repository}, then {login}",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RefimplError(
            f"{repository} has no revision {revision}",
            f"a branch, a tag or a whole commit of {endpoint}/{repository}",
            f"check the revision, or omit @{revision}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise RefimplError(
            f"{endpoint} has no model {repository}, or does not show it to this account",
            "a public model, or a private one that this account may download",
            f"check the id, or {login}",
        ) from error
    except Exception as error:  # of the library, of its HTTP client, or of the disk
        raise RefimplError(
            f"{name} cannot be downloaded from {endpoint} ({error})",
            "a server that can be reached, and a whole download",
            "check the network and HF_ENDPOINT, and run the command again: it goes on",
        ) from error


def _remedy(repository: str, revision: str, check: str, offline: bool) -> str:
    """The next step towards a model that the cache does not hold."""
    which = "" if revision == "main" else f" --revision {revision}"
    unset = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, and " if offline else ""
    return f"{check}, or {unset}add --download (or run hf download {repository}{which})"
