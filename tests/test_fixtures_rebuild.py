"""The committed fixtures are what their script makes: run it from scratch, and compare."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from gates import CASES, worst_token
from safetensors.numpy import load_file

SCRIPT = FIXTURES / "make_fixtures.py"
VERSIONS = json.loads((FIXTURES / "versions.json").read_text("utf-8"))

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fixtures")
    command = [sys.executable, str(SCRIPT), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def stored(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Dtype, shape and bytes of every tensor of a file, whatever the dtype."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    return {
        name: (
            entry["dtype"],
            entry["shape"],
            raw[start:][slice(*entry["data_offsets"])],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def test_the_script_makes_these_cases(rebuilt: Path) -> None:
    folders = sorted(path.name for path in rebuilt.iterdir() if path.is_dir())
    assert (
        folders
        == [*VERSIONS]
        == [*json.loads((rebuilt / "versions.json").read_text("utf-8"))]
    )


@pytest.mark.parametrize("case", VERSIONS)
def test_model_is_rebuilt(case: str, rebuilt: Path) -> None:
    same = all(version(package) == made for package, made in VERSIONS[case].items())
    names = sorted(path.name for path in (FIXTURES / case).iterdir())
    assert names == sorted(path.name for path in (rebuilt / case).iterdir())
    for name in names:
        ours, again = FIXTURES / case / name, rebuilt / case / name
        if same and name != "expected.safetensors":
            assert again.read_bytes() == ours.read_bytes(), name
        elif name.startswith("model") and name.endswith(".safetensors"):
            assert stored(again) == stored(ours), name


@pytest.mark.parametrize("case", CASES)
def test_expected_values_are_rebuilt(case: str, rebuilt: Path) -> None:
    ours, again = (
        load_file(root / case / "expected.safetensors") for root in (FIXTURES, rebuilt)
    )
    assert ours.keys() == again.keys()
    np.testing.assert_array_equal(again.pop("token_ids"), ours.pop("token_ids"))
    errors = {name: worst_token(again[name], value) for name, value in ours.items()}
    assert {name: error for name, error in errors.items() if not error < 1e-13} == {}


def test_shards_hold_the_same_model() -> None:
    whole = stored(FIXTURES / "llama" / "model.safetensors")
    shards = sorted((FIXTURES / "llama_sharded").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert {
        name: tensor for shard in shards for name, tensor in stored(shard).items()
    } == whole
