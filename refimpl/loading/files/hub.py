"""Models of the Hugging Face hub: found in its cache, and downloaded if the user asks for it."""

import re
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError, listed
from refimpl.loading.files.file_reading import DOCUMENT, read_file, reading
from refimpl.loading.files.refused_formats import CONVERSIONS
from refimpl.loading.files.safetensors_file import shard_of_tensor
from refimpl.storage.target_checks import require_room

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
_REVISION, _FILE = r"[A-Za-z0-9][\w./-]*", r"(?:[\w.+-]+/)*[\w.+-]+\.(?:gguf|GGUF)|[A-Za-z0-9_]+"
_ID = re.compile(rf"({_NAME}/{_NAME})(?:@({_REVISION}))?(?::({_FILE}))?", re.ASCII)
COMMIT, ETAG = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_EXPECTED = (
    "a path that exists, or an id in the Hugging Face cache: "
    "ORG/NAME[@REVISION][:FILE.gguf or :TYPE]"
)


def local_files(model: str | Path, download: bool = False) -> tuple[Path, str | None]:
    """The path of a model's files, and its id with the commit if it is one of the hub.

    A path that exists is a path. An id without a GGUF file or a type stands for the repository's
    safetensors, or its only GGUF model. If no server answers, the cache does.
    """
    path, match = Path(model), _ID.fullmatch(str(model))
    with reading(path, _EXPECTED):
        if path.exists():
            return path, None
    if match is None or ".." in match[0] or "//" in match[0] or "--" in match[0].split(":")[0]:
        return path, None
    repository, revision, file = match[1], match[2] or "main", match[3]
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise RefimplError(
            f"{model}: no such file or folder, and huggingface_hub, which finds ids, is missing",
            "a path that exists, or for an id, refimpl with its extra [hub]",
            "check the path, or run pip install 'refimpl[hub]'",
        ) from error
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    unset = "unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE, and " * constants.HF_HUB_OFFLINE
    if download and not unset:
        snapshot, file = _downloaded(repository, revision, folder, constants.ENDPOINT, file)
    else:
        snapshot = _snapshot(folder, revision)
    if snapshot is None:
        raise RefimplError(
            f"{model}: no such file or folder, and the cache {folder.parent} holds no revision "
            f"{revision} of such a model",
            _EXPECTED,
            f"check the path, or {unset}add --download",
        )
    return _whole(snapshot, repository, file, unset)


def _snapshot(folder: Path, revision: str) -> Path | None:
    """The folder of a revision in a repository's folder of the cache; None if it is not there."""
    commit, ref = revision, folder / "refs" / revision
    with reading(ref, _EXPECTED):
        if ref.is_file():
            commit = read_file(ref).decode("utf-8", "replace").strip()
        found = folder / "snapshots" / commit
        return found if COMMIT.fullmatch(commit) and found.is_dir() else None


def _whole(snapshot: Path, repository: str, file: str | None, unset: str = "") -> tuple[Path, str]:
    """A snapshot (or a GGUF file in it) and its id, if all files of its weights are there."""
    name = f"{repository}@{snapshot.name}"
    with reading(snapshot, _EXPECTED):
        entries = {entry.name: entry for entry in snapshot.iterdir()}
        broken = [name for name, entry in entries.items() if not entry.exists()]
        inside = [x.relative_to(snapshot).as_posix() for x in snapshot.rglob("*")]
        if not any(x.endswith((".safetensors", INDEX)) for x in entries) or file:
            file = only_gguf(inside, name, file)
        expected = f"config.json, and {WEIGHTS[0]} or {INDEX} with all its shards"
        needed = {"config.json"}
        if file is not None:
            needed, broken, expected = set(_shards(file)), [], "all files of the GGUF model"
            entries = {x: snapshot / x for x in needed if (snapshot / x).exists()}
        elif INDEX in entries and INDEX not in broken and "model.safetensors" not in entries:
            needed |= set(shard_of_tensor(entries[INDEX]).values())
        elif not any(Path(name).suffix in (".safetensors", *CONVERSIONS) for name in entries):
            needed |= {"model.safetensors"}
    path, name = (snapshot, name) if file is None else (snapshot / file, f"{name}:{file}")
    if missing := sorted({*broken, *needed - entries.keys()}):
        raise RefimplError(
            f"{name}: the cache lacks {listed(missing)} ({snapshot})",
            expected,
            f"if the repository holds these files, {unset}pass {name} with --download",
        )
    return path, name


def only_gguf(names: Iterable[str], repository: str, kind: str | None) -> str | None:
    """The GGUF model of a repository: a file (of a split one the first), or the one of a type."""
    if kind and kind.lower().endswith(".gguf"):
        return kind
    models = sorted(x for x in names if x.endswith(".gguf") and _shards(x)[0] == x)
    models = [x for x in models if not x.rpartition("/")[2].startswith("mmproj")]  # vision parts
    of_kind = re.compile(rf"(.*[-_./])?{kind}([-.].*)", re.IGNORECASE)
    found = [x for x in models if of_kind.fullmatch(x)] if kind else models
    if len(found) > 1 or (kind and not found):
        of = f"{len(found)} GGUF models" + (f" of type {kind}" if kind else "")
        raise RefimplError(
            f"{repository} holds {of}:" if found or models else f"{repository} holds no GGUF model",
            "one of them, with its name behind the id",
            f"name it, for example {repository}:{(found or models or ['FILE.gguf'])[0]}",
            found or models,
        )
    return found[0] if found else None


def _shards(file: str) -> list[str]:
    """The names of all files of a GGUF model by one of them: of a split model, its shards."""
    if (match := re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", file)) is None:
        return [file]
    return [f"{match[1]}-{i + 1:05}-of-{match[2]}.gguf" for i in range(int(match[2]))] or [file]


def _downloaded(
    repository: str, revision: str, folder: Path, endpoint: str, file: str | None
) -> tuple[Path | None, str | None]:
    """Download what is missing of a revision; its snapshot, and the GGUF model if it is one."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    name = f"{repository}@{revision}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        with checked_answers(endpoint) as answers:
            try:
                listing = HfApi().model_info(repository, revision=revision, files_metadata=True)
            except (errors.RevisionNotFoundError, RefimplError):
                raise
            except Exception:
                with suppress(RefimplError):
                    if (snapshot := _snapshot(folder, revision)) is not None:
                        _whole(snapshot, repository, file)
                        return snapshot, file
                raise
            answers.commit = answers.checked(COMMIT, listing.sha, "a commit")
            listed = {x.rfilename: x.size for x in listing.siblings or ()}
            files, file = _wanted(listed, name, file)
            answers.require_files(files)
            snapshot = folder / "snapshots" / answers.commit
            absent = [x for x in files if not (snapshot / x).exists()]
            disk = next(x for x in folder.parents if x.exists())
            more = "free some space, or set HF_HUB_CACHE to another disk"
            require_room(disk, sum(files[x] for x in absent), f"{name} in {disk}", more)
            for each in absent or [*files][:1]:  # one at least, which notes the branch's commit
                answers.most = files[each]
                hf_hub_download(repository, each, revision=revision)
    except RefimplError:
        raise
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
    return snapshot, file


def _wanted(
    listed: dict[str, Any], name: str, file: str | None
) -> tuple[dict[str, Any], str | None]:
    """What we read of the files that a server lists, by name; and the GGUF model if it is one."""
    names = [] if file else [x for x in listed if any(fnmatchcase(x, y) for y in DOWNLOADED)]
    names = [x for x in names if "/" not in x]
    if not any(x.endswith(".safetensors") for x in names):
        file = only_gguf(listed, name, file)
    names += _shards(file) if file else []
    if not (files := {x: listed[x] for x in names if x in listed}):
        raise RefimplError(
            f"{name} has no file that refimpl reads",
            "config.json and safetensors, or a GGUF model",
            "check the id, and the name of a GGUF file in it",
        )
    return files, file


class Answers:
    """Checks of what a server answers, before the library makes paths and files of it.

    They know the commit of one download, and the bytes that the next file has in the listing.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.commit, self.most = endpoint, "", 0
        self._thread = threading.get_ident()

    def check(self, response: Any) -> None:
        """Refuse a response that names a commit or a blob by anything but its digits."""
        if threading.get_ident() != self._thread:  # of somebody else who uses the library
            return
        headers = response.headers
        if (commit := headers.get("X-Repo-Commit")) is not None:
            self.checked(COMMIT, commit, "a commit")
            if self.commit not in ("", commit):
                raise self._odd(f"sends a file of commit {commit}", f"one of {self.commit}")
        if response.request.method == "HEAD" and response.status_code < 400:
            etag = headers.get("X-Linked-Etag") or headers.get("ETag")
            if etag is not None:  # the library cuts all of these characters off
                self.checked(ETAG, etag.lstrip("W/").strip('"'), "an ETag")
        most = self.most if self.most and response.is_success else DOCUMENT
        response.iter_bytes = partial(self._bounded, response.iter_bytes, most)

    def _bounded(self, chunks: Any, most: int, *arguments: Any, **options: Any) -> Iterator[bytes]:
        """The chunks of a body; none is written after there are more than `most` bytes."""
        size = 0
        for chunk in chunks(*arguments, **options):
            size += len(chunk)
            if size > most:
                raise self._odd(f"sends more than {most:,} bytes", f"at most {most:,} bytes")
            yield chunk

    def checked(self, pattern: re.Pattern[str], value: object, what: str) -> str:
        """A commit or an ETag of the server, which the library makes a file name of."""
        if not isinstance(value, str) or not pattern.fullmatch(value):
            digits = "40 hexadecimal digits" + ("" if pattern is COMMIT else ", or 64")
            raise self._odd(f"answers with {what} that would be a path: {value!r:.80}", digits)
        return value

    def require_files(self, files: dict[str, Any]) -> None:
        """Refuse names that lead out of a folder, or that a system reads differently, and sizes."""
        for name, size in files.items():
            outside = {*name.split("/")} & {"", ".", ".."}
            if not name.isprintable() or {*name} & {*'\\:*?"<>|'} or outside:
                raise self._odd(f"lists a file {name!r:.80}", "relative paths of plain names")
            if not isinstance(size, int) or not 0 <= size < 1 << 63:
                problem = f"lists {name} without its size ({size!r:.40})"
                raise self._odd(problem, "the size of each file")

    def _odd(self, problem: str, expected: str) -> RefimplError:
        """The error for an answer that no hub gives, unless its files have just changed."""
        remedy = "check HF_ENDPOINT; if a new commit has just been made, repeat the command"
        return RefimplError(f"{self.endpoint} {problem}", expected, remedy)


@contextmanager
def checked_answers(endpoint: str) -> Iterator[Answers]:
    """Check what the library receives in this thread; it prints nothing meanwhile."""
    from huggingface_hub import constants, get_session, utils

    answers, hooks = Answers(endpoint), get_session().event_hooks["response"]
    verbosity, xet = utils.logging.get_verbosity(), constants.HF_HUB_DISABLE_XET
    hooks.append(answers.check)
    constants.HF_HUB_DISABLE_XET = True  # a client of its own, which no check sees
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    if silenced := not (utils.are_progress_bars_disabled() or sys.stderr.isatty()):
        utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield answers
    finally:
        if silenced:
            utils.enable_progress_bars()
        utils.logging.set_verbosity(verbosity)
        constants.HF_HUB_DISABLE_XET = xet
        hooks[:] = [hook for hook in hooks if hook != answers.check]
