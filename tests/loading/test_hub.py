"""Ids of the Hugging Face hub: cached, downloaded, refused; against a server on localhost."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from hub_server import COMMITS, Hub, Reply, environment, serving
from program import ran, refused, run
from refusals import refusal_of

from refimpl import read_model
from refimpl.loading.files.hub import DOWNLOADED
from refimpl.oracle.case import read_case
from refimpl.pruning.record import read_record

NAME, MAIN = "org/tiny.model", f"org/tiny.model@{COMMITS['main']}"
SMALL = ("--samples", "2", "--seq-len", "8")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One for all tests, as huggingface_hub reads its address when it is imported: a while."""
    with serving(tmp_path_factory.mktemp("user") / "home") as server:
        yield server


@pytest.fixture
def tmp_path(server: Hub) -> Path:
    """The folder above HF_HOME, empty again."""
    for path in server.home.parent.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return server.home.parent


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A server with one model in two revisions; the working folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    server.reset()
    others = {"pytorch_model.bin": b"pickle", "consolidated.safetensors": b"twice"}
    server.add(NAME, FIXTURES / "llama", **others, **{"sub/model.safetensors": b"no"})
    server.add(NAME, FIXTURES / "qwen2", "v2")
    return server


def repository(hub_home: Path) -> Path:
    return hub_home / "hub" / f"models--{NAME.replace('/', '--')}"


@pytest.fixture
def snapshot(hub: Hub, tmp_path: Path) -> Path:
    read_model(NAME, download=True)
    return repository(tmp_path / "home") / "snapshots" / COMMITS["main"]


def test_only_the_files_we_read_are_downloaded_once(hub: Hub) -> None:
    assert "--download" in refusal_of(read_model, NAME, says=NAME).remedy
    assert not hub.requests
    model = read_model(NAME, download=True)
    assert model.name == MAIN
    expected = {p.name for p in (FIXTURES / "llama").iterdir()} & {*DOWNLOADED}
    assert hub.downloads == sorted(expected)
    ours = (
        "/api/models/",
        "/resolve/",
    )  # the library would ask for more, and say what runs
    assert all(any(part in line for part in ours) for line in hub.requests)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= expected
    hub.requests.clear()
    again = read_model(NAME)
    assert (again.name, again.path) == (MAIN, model.path)
    assert not hub.requests
    read_model(NAME, download=True)
    assert not hub.downloads
    ours, theirs = read_model(FIXTURES / "llama").weights, model.weights
    for name, weight in ours.items():
        np.testing.assert_array_equal(weight.read("f8"), theirs[name].read("f8"))


def test_a_program_may_have_imported_the_library_before(hub: Hub) -> None:
    code = f"""import refimpl, huggingface_hub.constants as settings; before = {{**vars(settings)}}
refimpl.read_model({NAME!r}, download=True); assert vars(settings) == before"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert hub.downloads
    assert not any(
        "harness" in line for line in hub.requests
    )  # whose answer nothing bounds


def test_a_revision_is_a_branch_or_a_commit(hub: Hub, snapshot: Path) -> None:
    commit = COMMITS["v2"]
    assert "--download" in refusal_of(read_model, f"{NAME}@{commit}").remedy
    assert read_model(f"{NAME}@v2", download=True).config.family == "qwen2"
    for revision in ("v2", commit):
        assert read_model(f"{NAME}@{revision}").name == f"{NAME}@{commit}"
    assert read_model(NAME).config.family == "llama"
    refusal_of(read_model, f"{NAME}@v3", download=True, says="no revision v3")


def test_a_path_that_exists_is_a_path(hub: Hub, snapshot: Path) -> None:
    assert read_model(snapshot).name == snapshot.name  # also in the cache
    hub.requests.clear()
    shutil.copytree(FIXTURES / "qwen2", NAME)
    assert read_model(NAME).name == "tiny.model"
    assert not hub.requests


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_reads_the_cache_alone(hub: Hub, snapshot: Path, variable: str) -> None:
    hub.requests.clear()
    with environment(**{variable: "1"}):
        assert read_model(NAME, download=True).name == MAIN
        refusal_of(
            read_model, f"{NAME}@v2", download=True, remedy="unset HF_HUB_OFFLINE"
        )
    assert not hub.requests


def test_the_cache_may_be_elsewhere(hub: Hub, snapshot: Path, tmp_path: Path) -> None:
    with environment(HF_HUB_CACHE=str(tmp_path / "other")):
        refusal_of(read_model, NAME, says=str(tmp_path / "other"))
    shutil.move(tmp_path / "home" / "hub", tmp_path / "other")
    with environment(HF_HUB_CACHE=str(tmp_path / "other")):
        assert read_model(NAME).name == MAIN


def test_a_gated_model_needs_the_token(hub: Hub) -> None:
    hub.gated.add(NAME)
    refusal_of(read_model, NAME, download=True, says="it is gated", remedy="HF_TOKEN")
    with environment(HF_TOKEN="wrong"):
        refusal_of(read_model, NAME, download=True, says="it is gated")
    with environment(HF_TOKEN=hub.token):
        assert read_model(NAME, download=True).name == MAIN


def test_an_absent_model_and_an_absent_server(hub: Hub) -> None:
    refusal_of(read_model, "org/none", download=True, says="has no model org/none")
    with environment(HF_ENDPOINT="http://127.0.0.1:9"):
        refusal_of(
            read_model,
            NAME,
            download=True,
            says="cannot be downloaded",
            remedy="network",
        )
    read_model(NAME, download=True)
    with environment(HF_ENDPOINT="http://127.0.0.1:9"):
        assert read_model(NAME, download=True).name == MAIN


def test_a_partial_model_names_what_is_missing(hub: Hub, snapshot: Path) -> None:
    weights = snapshot / "model.safetensors"
    blob = weights.resolve()
    blob.rename(blob.with_name("away"))  # a broken link
    problem = refusal_of(
        read_model, NAME, says="lacks model.safetensors", remedy=f"{MAIN} with"
    )
    weights.unlink()
    assert str(refusal_of(read_model, NAME)) == str(problem)
    (snapshot / "config.json").unlink()
    refusal_of(read_model, NAME, says="lacks config.json, model.safetensors")
    assert read_model(NAME, download=True).name == MAIN


def test_a_partial_model_of_shards(hub: Hub, snapshot: Path) -> None:
    (snapshot / "model.safetensors").unlink()
    shards = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    index = snapshot / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}), "utf-8")
    refusal_of(read_model, NAME, says=f"lacks {shards['a']}, {shards['b']} (")


def test_a_cache_of_other_weights_says_so(hub: Hub, snapshot: Path) -> None:
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    refusal_of(read_model, NAME, says="only pytorch_model.bin")


@pytest.mark.parametrize(
    "name",
    [
        "../tiny/model",
        "org/..",
        "org/../../etc",
        f"{NAME}@../../../x",
        f"{NAME}@",
        "a/b/c",
        f"{NAME}:x.gguf",
        "org/a--b",
        f"{NAME}@/etc",
        "/org/model",
        "org/model\n",
        "models--org--tiny.model",
        "ö/x",
    ],
)
def test_what_only_looks_like_an_id_is_a_path(hub: Hub, name: str) -> None:
    refusal_of(read_model, name, download=True, says="no such file or folder")
    assert not hub.requests


def test_a_hostile_reference_leads_nowhere(
    hub: Hub, snapshot: Path, tmp_path: Path
) -> None:
    shutil.copytree(FIXTURES / "llama", tmp_path / "elsewhere")
    for content in ("../../../../elsewhere", f"{tmp_path}/elsewhere", "", "\0"):
        (snapshot.parent.parent / "refs" / "main").write_text(content)
        refusal_of(read_model, NAME, says="no revision main")


def test_every_command_takes_an_id(hub: Hub, tmp_path: Path) -> None:
    refused("inspect", NAME)
    scores = json.loads(ran("score", NAME, *SMALL, "--download", "--json"))
    assert scores["scores"]["model"] == MAIN
    assert f"model       {MAIN}" in ran("score", NAME, *SMALL)
    text = ("--text", FIXTURES / "text.txt")
    assert MAIN in ran("eval", NAME, *text, "--windows", 1, "--window", 16)
    assert MAIN in ran("inspect", NAME)
    assert MAIN in ran(
        "explain", NAME, "--samples", 1, "--seq-len", 4, "--step", "signals"
    )
    ran(
        "prune",
        NAME,
        "--nm",
        "2:4",
        "--pruner",
        "magnitude",
        "-o",
        "pruned",
        quiet=False,
    )
    pruned = read_model("pruned")
    record = read_record(pruned)
    assert pruned.name == "pruned"
    assert record is not None
    assert record["model"] == MAIN
    ran("export", NAME, "-o", "model.onnx")


def test_a_case_refers_to_the_id(hub: Hub, tmp_path: Path) -> None:
    ran("case", "make", NAME, *SMALL, "--download", "-o", "case")
    assert json.loads(Path("case/case.json").read_text("utf-8"))["model"] == MAIN
    assert read_case("case").model.name == MAIN
    shutil.rmtree(tmp_path / "home")
    refusal_of(read_case, "case", remedy="--download")
    assert read_case("case", download=True).model.name == MAIN


def test_a_repository_of_gguf_files_says_how_to_get_one(
    hub: Hub, tmp_path: Path
) -> None:
    hub.repositories[NAME] = {
        COMMITS["main"]: {"a.gguf": b"GGUF", "README.md": b"tiny"}
    }
    refusal_of(
        read_model,
        NAME,
        download=True,
        says="lacks config.json",
        remedy="refimpl convert",
    )


def test_the_bar_is_on_a_terminal_alone(hub: Hub) -> None:
    assert "100%" in run("inspect", NAME, "--download", err_terminal=True).err
    assert run("inspect", f"{NAME}@v2", "--download").err == ""


# A hostile server

OUT = "../../../../escaped"
ABOVE, LISTED = "40 hexadecimal digits", ", as listed"


def listing(change: Callable[[dict[str, Any]], object]) -> Callable[[Reply], None]:
    def tamper(reply: Reply) -> None:
        if reply.kind == "listing":
            change(facts := json.loads(reply.content))
            reply.content = json.dumps(facts).encode()

    return tamper


def stating(**facts: object) -> Callable[[Reply], None]:
    return listing(lambda found: found.update(facts))


def sizes(size: object) -> Callable[[Reply], None]:
    return listing(lambda facts: [file.update(size=size) for file in facts["siblings"]])


def answers(kind: str, status: int = 200, **headers: str) -> Callable[[Reply], None]:
    def tamper(reply: Reply) -> None:
        if reply.kind == kind:
            reply.status = status
            reply.headers |= {
                name.replace("_", "-"): value for name, value in headers.items()
            }

    return tamper


def endless(kind: str) -> Callable[[Reply], None]:
    def tamper(reply: Reply) -> None:
        if reply.kind == kind:
            reply.repeated, reply.content = True, b" " * (1 << 20)

    return tamper


SHORT = {"Content_Length": "9", "Connection": "close"}
HOSTILE: dict[str, tuple[Callable[[Reply], None], str]] = {
    "a commit with a path": (stating(sha=OUT), ABOVE),
    "an absolute commit": (stating(sha="/tmp/refimpl-escaped"), ABOVE),
    "a commit in capitals": (stating(sha="A" * 40), ABOVE),
    "a commit with a line end": (stating(sha="a" * 40 + "\n"), ABOVE),
    "no commit": (stating(sha=None), ABOVE),
    "a commit that is a number": (stating(sha=10**39), ABOVE),
    "a header's commit with a path": (answers("facts", X_Repo_Commit=OUT), LISTED),
    "a missing file's commit": (
        answers("facts", 404, X_Repo_Commit=OUT, X_Error_Code="EntryNotFound"),
        "can be reached",
    ),
    "another commit": (answers("facts", X_Repo_Commit="c" * 40), LISTED),
    "an ETag with a path": (answers("facts", ETag=f'"{OUT}"'), ABOVE),
    "a weak ETag with a path": (answers("facts", ETag=f'W/"{OUT}"'), ABOVE),
    "a linked ETag": (answers("facts", X_Linked_Etag="/tmp/refimpl-escaped"), ABOVE),
    "an ETag of 41 digits": (answers("facts", ETag="a" * 41), ABOVE),
    "a redirection": (
        answers("facts", 302, Location="http://127.0.0.1:9/x", ETag=OUT),
        ABOVE,
    ),
    "a negative size": (sizes(-1), "its bytes"),
    "no size": (sizes(None), "its bytes"),
    "a size in words": (sizes("seven"), "its bytes"),
    "another size": (sizes(3), "a whole download"),
    "more than the disk": (sizes(1 << 60), "room for all files"),
    "a file without end": (endless("content"), "a whole download"),
    "a file that breaks off": (answers("content", **SHORT), "can be reached"),
    "a listing of something else": (stating(siblings=7), "can be reached"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_server_writes_nothing_outside_the_cache(
    name: str, hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.tamper, expected = HOSTILE[name]
    error = refusal_of(read_model, NAME, download=True)
    assert expected in error.expected
    assert {x.name for x in tmp_path.iterdir()} <= {"home", "here"}
    assert {x.name for x in (tmp_path / "home").glob("*")} <= {"hub"}
    assert not [*(tmp_path / "here").iterdir()]
    assert not Path("/tmp/refimpl-escaped").exists()
    assert not {*repository(tmp_path / "home").rglob("*escaped*")}
    assert (
        sum(x.stat().st_size for x in (tmp_path / "home").rglob("*") if x.is_file())
        < 1 << 20
    )
    assert capfd.readouterr() == ("", "")
    hub.tamper = lambda reply: None
    assert read_model(NAME, download=True).name == MAIN  # the cache is not damaged


def test_what_the_server_and_the_library_say_is_not_printed(
    hub: Hub, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.tamper = answers(
        "listing", 404, X_HF_Warning="x; \x1b[2J read this", X_Error_Code="RepoNotFound"
    )
    assert refused("inspect", NAME, "--download").count("\n") == 3
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name",
    ["README\\..\\..\\x", "README\0", "README:x", "README/../../x", "README\u202e"],
)
def test_a_name_that_is_no_plain_one_is_not_downloaded(hub: Hub, name: str) -> None:
    hub.tamper = listing(
        lambda facts: facts["siblings"].append({"rfilename": name, "size": 1})
    )
    assert read_model(NAME, download=True).name == MAIN
    assert not any("README" in line for line in hub.requests)


def test_the_library_is_left_as_it_was(hub: Hub) -> None:
    read_model(NAME, download=True)  # imports it, with refimpl's settings
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    hub.tamper = stating(sha=OUT)
    refusal_of(read_model, f"{NAME}@v2", download=True)
    assert logging.get_verbosity() == before
