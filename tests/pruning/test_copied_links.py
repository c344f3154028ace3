"""A pruned model is published: it has no copy of a file outside the model's folder."""

import json
import os
import shutil
from pathlib import Path

import pytest
from checkpoints import config_of
from conftest import FIXTURES
from program import ran, refused
from quantised_files import FP8, fp8_model

HOW = ("--nm", "2:4", "--pruner", "magnitude")
BESIDE = (
    "README.md",
    "LICENSE",
    "NOTICE.txt",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "merges.txt",
    "pruning.json",
    "anything",
)


def model_at(folder: Path, secrets: Path) -> set[str]:
    """A model all of whose files are links to files in another folder; their names."""
    shutil.copytree(FIXTURES / "llama_sharded", secrets)
    for name in BESIDE:
        (secrets / name).write_text(json.dumps({"secret": name}))
    folder.mkdir(parents=True)
    names = {path.name for path in secrets.iterdir()}
    for name in names:
        (folder / name).symlink_to(os.path.relpath(secrets / name, folder))
    return names


def named(error: str) -> set[str]:
    lines = [line for line in error.splitlines() if " -> " in line]
    assert all(line.startswith("  ") for line in lines)
    return {line.partition(" -> ")[0].strip() for line in lines}


def test_every_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    names = model_at(tmp_path / "model", tmp_path / "secrets")
    out, left = tmp_path / "out", sorted(tmp_path.iterdir())
    for more in ((), ("--force",)):
        assert (
            named(refused("prune", tmp_path / "model", "-o", out, *HOW, *more)) == names
        )
    assert sorted(tmp_path.iterdir()) == left
    ran(
        "score", tmp_path / "model", "--tokens", "random", "--samples", 1
    )  # reading is free
    (tmp_path / "link").symlink_to("model")
    assert named(refused("prune", tmp_path / "link", "-o", out, *HOW)) == names
    index = "model.safetensors.index.json"  # that was named; LICENSE and others are beside it
    assert "README.md" in (
        found := named(refused("prune", tmp_path / "model" / index, "-o", out))
    )
    assert found == names - {index, "anything"}
    for name in names:
        (tmp_path / "model" / name).unlink()
        if name != "pruning.json":
            shutil.copy(tmp_path / "secrets" / name, tmp_path / "model")
    ran("prune", tmp_path / "link", "-o", out, *HOW)


def test_a_loop_of_links_leads_nowhere(tmp_path: Path) -> None:
    """As a link to nothing: no file is behind it, and none can be written there."""
    model_at(tmp_path / "links", tmp_path / "model")
    record, loop = tmp_path / "model" / "pruning.json", tmp_path / "loop"
    record.unlink()
    record.symlink_to(record.name)
    ran("prune", tmp_path / "model", "-o", tmp_path / "out", *HOW)
    loop.symlink_to(loop.name)
    refused("prune", FIXTURES / "llama", "-o", loop / "out", *HOW)


@pytest.mark.parametrize(
    ("folder", "secrets"),
    [
        ("models--org--name/snapshots/1", "models--org--other/blobs"),
        ("models--org--name/snapshots/1", "models--org--name/blobs-2"),
        ("models--org--name/snapshots/1", "models--org--name/snapshots/2"),
        ("models--org--name/snapshots/1", "models--org--name/refs"),
        ("models--org--name/1", "models--org--name/blobs"),
        ("home/snapshots/1", "home/blobs"),
    ],
)
def test_other_places_of_a_cache_are_refused(
    folder: str, secrets: str, tmp_path: Path
) -> None:
    names = model_at(tmp_path / folder, tmp_path / secrets)
    assert (
        named(refused("prune", tmp_path / folder, "-o", tmp_path / "out", *HOW))
        == names
    )


def test_a_blob_that_is_a_link_is_one(tmp_path: Path) -> None:
    repository, secrets = tmp_path / "models--org--name", tmp_path / "secrets"
    names = model_at(repository / "snapshots/1", repository / "blobs")
    words = ("prune", repository / "snapshots/1", "-o", tmp_path / "out", *HOW)
    (repository / "blobs/README.md").unlink()
    (repository / "blobs/README.md").symlink_to(FIXTURES / "text.txt")
    assert named(refused(*words)) == {"README.md"}
    (repository / "blobs").rename(secrets)
    (repository / "blobs").symlink_to(secrets)
    assert named(refused(*words)) == names


def test_companions_of_a_converted_model(tmp_path: Path) -> None:
    model = fp8_model(tmp_path, FP8["blocks"])[0]
    (tmp_path / "secret").write_text("mine")
    (model / "README.md").symlink_to(tmp_path / "secret")
    assert named(refused("convert", model, "-o", tmp_path / "out")) == {"README.md"}


@pytest.mark.parametrize(
    "words", [("prune", *HOW), ("convert",)], ids=["prune", "convert"]
)
def test_a_file_too_large_to_be_copied_is_refused(
    words: tuple[str, ...], tmp_path: Path
) -> None:
    model, out = fp8_model(tmp_path, FP8["blocks"])[0], tmp_path / "out"
    if words[0] == "prune":
        model = shutil.copytree(FIXTURES / "llama", tmp_path / "llama")
    (model / "notes").write_bytes(b"{}")
    os.truncate(model / "notes", 1 << 40)  # takes no room
    left = sorted(tmp_path.iterdir())
    assert "notes: 1,099,511,627,776 bytes" in refused(
        words[0], model, *words[1:], "-o", out
    )
    assert sorted(tmp_path.iterdir()) == left
    os.truncate(model / "notes", 2)
    ran(words[0], model, *words[1:], "-o", out)
    assert (out / "notes").read_bytes() == b"{}"


def test_a_file_that_was_named_may_be_a_link(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "llama/model.safetensors", tmp_path / "weights")
    (tmp_path / "named").mkdir()
    (tmp_path / "named/model.safetensors").symlink_to(tmp_path / "weights")
    (tmp_path / "named/config.json").write_text(json.dumps(config_of("llama")))
    ran("prune", tmp_path / "named/model.safetensors", "-o", tmp_path / "out", *HOW)
    assert json.loads((tmp_path / "out/config.json").read_text()) == config_of("llama")
