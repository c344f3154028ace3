"""`refimpl inspect`: zeros of every linear as they lie in the file, sizes, the record."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of, needs_proc, resident, sparse
from conftest import FIXTURES
from gates import CASES, layouts
from processes import printed_json
from program import ran
from pruned_models import Decision, write_pruned
from refusals import refusal_of

import refimpl
from refimpl import read_model
from refimpl.model.ops import Array
from refimpl.pruning.record import LinearZeros, inspect, inspection_document
from refimpl.show.models import inspection_table

LLAMA = FIXTURES / "llama"


def pruned(case: str, into: Path, keep: Any) -> Path:
    """A fixture pruned as `keep(block, name, shape)` says."""
    model = read_model(FIXTURES / case)
    decisions = {
        i: {name: Decision(keep(i, name, shape)) for name, shape in linears.items()}
        for i, linears in enumerate(model.config.linears)
    }
    write_pruned(model, into, decisions)
    return into


def without_one(block: int, name: str, shape: tuple[int, int]) -> Array:
    """2:4, other places in each row; of one linear everything."""
    rows, width = shape
    first = np.array([True, True, False, False]) | ((block, name) == (0, "k_proj"))
    return np.array(
        [np.tile(np.roll(first, block + row), width // 4) for row in range(rows)]
    )


@pytest.mark.parametrize("case", layouts([*CASES, "llama_sharded"]))
def test_zeros_are_counted_per_linear(case: str, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    shares = {}

    def keep(block: int, name: str, shape: tuple[int, int]) -> Array:
        shares[block, name] = random.random(shape) < random.random()
        return shares[block, name]

    folder = pruned(case, tmp_path / "new", keep)
    model = read_model(folder)
    found = inspect(model)
    for i, linears in enumerate(found.blocks):
        weights = model.block(i, "float64")
        assert list(linears) == list(model.config.linears[i])
        for name, linear in linears.items():
            values = weights[f"{name}.weight"]
            zeros = values.size - np.count_nonzero(values)
            assert (linear.weights, linear.zeros) == (values.size, zeros)
            assert zeros >= (~shares[i, name]).sum()
            assert linear.sparsity == zeros / values.size
            assert (
                linear.dtype == model.weights[f"blocks.{i}.{name}.weight"].stored.dtype
            )
    assert found.files == {f.path.name: f.path.stat().st_size for f in model.files}
    sizes = {w.stored.name: w.stored.array for w in model.weights.values()}
    assert found.parameters == sum(array.size for array in sizes.values())
    assert found.parameter_bytes == sum(array.nbytes for array in sizes.values())
    assert found.requested is None


def print_growth(folder: str) -> None:
    """Print by how many bytes a process grows that has inspected a small model before."""
    inspect(read_model(LLAMA))
    model, before = read_model(folder), resident()
    found = inspect(model)
    print(resident() - before)
    assert all(linear.sparsity == 1 for linear in found.linears)


@needs_proc
def test_one_linear_is_read_at_a_time(tmp_path: Path) -> None:
    """In a process of its own: a heap that other tests have filled grows by chance."""
    config = config_of(
        "llama", hidden_size=512, intermediate_size=2304, vocab_size=16000
    )
    folder = sparse(tmp_path / "m", config | {"num_hidden_layers": 12})  # 206 MB
    # the largest linear has 4.7 MB
    assert printed_json(__file__, f"print_growth({str(folder)!r})") < 12e6


@cache
def record_text() -> str:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        return ran(
            "prune", LLAMA, "-o", out, "--nm", "2:4", "--pruner", "magnitude", "--json"
        )


def recorded(folder: Path, **changes: Any) -> Path:
    shutil.copytree(LLAMA, folder)
    (folder / "pruning.json").write_text(
        json.dumps(json.loads(record_text()) | changes)
    )
    return folder


@pytest.mark.parametrize(
    ("changes", "expected", "line"),
    [
        (
            {"pattern": None, "requested_sparsity": 0.7},
            (0.7, None),
            "sparsity 0.7 by magnitude",
        ),
        ({}, (0.5, "2:4"), "2:4 by magnitude"),
        ({"a key of": "a newer version"}, (0.5, "2:4"), "2:4 by magnitude"),
    ],
)
def test_what_was_requested_is_said(
    changes: dict[str, Any], expected: tuple[Any, Any], line: str, tmp_path: Path
) -> None:
    found = inspect(read_model(recorded(tmp_path / "m", **changes)))
    sparsity, pattern = expected
    assert found.requested == {
        "method": "magnitude",
        "sparsity": sparsity,
        "pattern": pattern,
    }
    assert f"requested   {line}, as pruning.json says\n" in inspection_table(found)


@pytest.mark.parametrize(
    "record",
    [
        *(None, "{", {"method": 3}),  # none: a folder
        *({"requested_sparsity": 1.5}, {"allocation": {"strength": []}}, {"format": 2}),
    ],
)
def test_a_broken_record_is_refused(
    record: str | dict[str, Any] | None, tmp_path: Path
) -> None:
    changes = record if isinstance(record, dict) else {}
    path = recorded(tmp_path / "m", **changes) / "pruning.json"
    if record is None:
        path.unlink()
        path.mkdir()
    elif isinstance(record, str):
        path.write_text(record)
    what = ": not a record of a pruning" if record else " is not a regular file"
    error = refusal_of(inspect, read_model(tmp_path / "m"), says=f"pruning.json{what}")
    assert all(name in error.problem for name in changes)


TABLE = """\
model       new, family llama, 4 blocks
parameters  46,368 in all, 0.2 MiB
file        model.safetensors, 0.2 MiB
requested   2:4 by magnitude, as pruning.json says

block  weights  sparsity  q_proj  k_proj  v_proj  o_proj  gate_proj  up_proj  down_proj  dtype
    0    7,296    0.4649  0.5000  0.0000  0.5000  0.5000     0.5000   0.5000     0.5000    F32
    1    7,296    0.5000  0.5000  0.5000  0.5000  0.5000     0.5000   0.5000     0.5000    F32
    2    7,296    0.5000  0.5000  0.5000  0.5000  0.5000     0.5000   0.5000     0.5000    F32
    3    7,296    0.5000  0.5000  0.5000  0.5000  0.5000     0.5000   0.5000     0.5000    F32
  all   29,184    0.4912  0.5000  0.3750  0.5000  0.5000     0.5000   0.5000     0.5000    F32

zeros 14,336 of 29,184 (49.1228%)
"""


def test_the_command_prints_a_table(tmp_path: Path) -> None:
    folder = pruned("llama", tmp_path / "new", without_one)
    (folder / "pruning.json").write_text(record_text())
    assert ran("inspect", folder) == TABLE
    assert inspect(read_model(folder)).blocks[0]["k_proj"] == LinearZeros(512, 0, "F32")


def test_the_command_prints_and_writes_json(tmp_path: Path) -> None:
    folder = pruned("llama_sharded", tmp_path / "new", without_one)
    found = json.loads(ran("inspect", folder, "--json", "-o", tmp_path / "x.json"))
    assert json.loads((tmp_path / "x.json").read_text()) == found
    assert found.pop("refimpl") == refimpl.__version__
    assert found == inspection_document(inspect(read_model(folder)))
    assert (found["weights"], found["zeros"]) == (29184, 14336)
    assert found["sparsity"] == 14336 / 29184
    assert len(found["files"]) == 4
    first = found["blocks"][0]
    assert [linear["name"] for linear in first["linears"]][:2] == ["q_proj", "k_proj"]
    k_proj = {"name": "k_proj", "weights": 512, "zeros": 0}
    assert first["linears"][1] == k_proj | {"dtype": "F32", "sparsity": 0.0}
    assert (first["index"], first["weights"], first["zeros"]) == (0, 7296, 3392)
    assert ran("inspect", folder).count(".safetensors, 0.") == 4
