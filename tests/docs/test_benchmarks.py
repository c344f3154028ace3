"""The benchmark suite's own parts: figures, shapes, random models, the page; no rival is run."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from candidates import needs_torch
from conftest import HERE

sys.path.insert(0, str(HERE / "tools" / "benchmarks"))

import figure
import ours
import performance_page
import process
import rows
import scoring_profile
import shapes
from figure import Figure
from regions import regions

import refimpl

BENCHMARKS = HERE / "tools" / "benchmarks"
RATIO = Figure("rate", "rate", "tiny", "theirs", "s", (1.0, 2.0), (4.0, 4.0), (4.0, 2.0), goal=3.0)


@pytest.mark.parametrize(
    ("goal", "sense", "verdict"),
    [
        *((3.0, "at least", "pass"), (3.75, "at least", "falls short by 20%")),
        *((3.0, "at most", "pass"), (2.5, "at most", "falls short by 20%")),
        (None, "at least", "no goal"),
    ],
)
def test_the_median_is_judged(goal: float | None, sense: figure.Sense, verdict: str) -> None:
    one = replace(RATIO, goal=goal, sense=sense)
    assert (one.median, one.verdict) == (3.0, verdict)
    assert figure.from_json(json.loads(json.dumps(figure.as_json(one)))) == one


def test_numbers_are_short() -> None:
    assert figure.spread((1.0, 2.0, 4.0), "s") == "2 s (1 to 4)"
    found = [figure.number(x) for x in (0, 0.12345, 12345.6, 1e-8)]
    assert found == ["0", "0.123", "12,346", "1.0e-08"]


@pytest.mark.parametrize("shape", [shapes.TINY, replace(shapes.TINY, family="qwen2", tied=False)])
def test_a_random_model_has_the_shape_it_says(
    shape: shapes.Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "MAX_SHARD", 200_000)
    folder = Path(tmp_path, "model")
    shapes.write_model(folder, shape)
    assert len(list(folder.glob("*.safetensors"))) > 1
    config = refimpl.read_model(folder).config
    assert (config.num_blocks, config.block_sizes[0]) == (shape.blocks, shape.block_size)
    data = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert shape.file_bytes < data < 1.1 * shape.file_bytes
    found = ours.score(str(folder), 1, 8)
    assert len(found["r"]) == shape.blocks
    assert found["r"][-1] == 1


def test_operations_are_those_of_the_products() -> None:
    shape, tokens = shapes.TINY, 5
    linears = sum(2 * tokens * out * width for out, width in shape.linears.values())
    seen = tokens * (tokens + 1) // 2
    attention = shape.heads * seen * 2 * (2 * shape.head_dim)  # q k^T and the mix of v
    assert shapes.block_operations(shape, tokens) == linears + attention
    passes = shape.blocks + 2 * (3 + 2 + 1)
    assert shapes.score_operations(shape, 3, tokens, draws=2) == 3 * passes * (linears + attention)


def test_every_script_can_be_imported() -> None:
    scripts = {path.stem for path in BENCHMARKS.glob("*.py")}
    assert len(scripts) > 10
    if find_spec("torch") is None:
        scripts -= {"rivals", "pruning_rivals"}
    code = f"import {', '.join(sorted(scripts))}"
    subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, check=True)


def test_known_models_have_their_sizes() -> None:
    assert shapes.SMOL.blocks * shapes.SMOL.block_size == 106_168_320
    assert shapes.QWEN.blocks * shapes.QWEN.block_size == 357_826_560
    assert 13.4e9 < shapes.LLAMA_7B.file_bytes < 13.5e9
    assert 2.4e9 < shapes.LLAMA_1B.file_bytes < 2.5e9


def test_a_slope_is_an_exponent() -> None:
    assert rows.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(process, "run", lambda side, **more: order.append(side) or {"x": 1.0})
    found = process.alternate({"a": ("a", {}), "b": ("b", {})}, 3)
    assert "".join(order) == "abbaab"
    assert process.column(found["b"], "x") == (1.0, 1.0, 1.0)


@pytest.mark.thorough
def test_a_side_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    shapes.write_model(tmp_path / "model", shapes.TINY)
    found = process.run("ours.score", model=str(tmp_path / "model"), samples=1, tokens=8)
    assert found["peak"] > 10e6
    with pytest.raises(SystemExit, match="no-such-model"):
        process.run("ours.score", model="no-such-model", samples=1, tokens=8)


@pytest.mark.thorough
def test_a_profile_adds_up(tmp_path: Path) -> None:
    shapes.write_model(tmp_path / "model", shapes.TINY)
    size = {"model": str(tmp_path / "model"), "samples": 1, "tokens": 64}
    found = process.run("scoring_profile.measure", **size, threads=1)
    assert found["steps"].keys() == set(scoring_profile.STEPS)
    assert all(seconds > 0 for seconds in found["steps"].values())
    assert sum(found["steps"].values()) <= found["processor"]
    assert 0 <= found["waiting"] < 1


def test_the_parts_of_a_profile_are_those_of_its_whole() -> None:
    names = [*scoring_profile.STEPS, scoring_profile.OTHER]
    steps = dict.fromkeys(names, 1 / len(names))
    profile = {"seconds": 12.0, "steps": steps, "waiting": 0.5, "threads": 2, "wall": 7.0}
    profile |= {"shape": "tiny", "operations": 8e9, "rate": 1e9, "start": 0.5}
    bound, *parts, whole, waiting, start = scoring_profile.roofline(profile).values()
    assert (bound, whole, waiting, start) == (8, 12, 7, 0.5)
    assert sum(parts) == pytest.approx(whole)
    assert "| 12 s (1.50) |" in performance_page.roofline_table([profile])


def test_the_page_is_what_its_results_make() -> None:
    results, other = (
        json.loads((BENCHMARKS / f"{name}.json").read_text())
        for name in ("results", "results-xeon")
    )
    page = performance_page.PAGE.read_text()
    tables = performance_page.tables(results, other)
    assert regions(page) == tables
    lines = "\n".join(tables[x].strip().split("|\n", 2)[2] for x in ("behind", "ahead", "limits"))
    shown = [tuple(line[2:].split(" | ")[:3]) for line in lines.splitlines()]
    names = [(x["what"], x["shape"], x["against"]) for x in results["figures"]]
    assert sorted(shown) == sorted(names)
    assert (
        page.index("<!-- goals -->") < page.index("<!-- behind -->") < page.index("<!-- ahead -->")
    )
    assert not results["quick"]
    assert results["rows"].keys() == {*rows.ROWS, "profile"}
    assert {entry["row"] for entry in results["figures"]} == set(rows.ROWS)
    assert np.all([entry["median"] is not None for entry in results["figures"]])


@needs_torch
def test_right_candidates_of_a_random_shape_are_computed_and_accepted() -> None:
    from oracle_shapes import tried

    lines = tried(3)
    assert {x["dtype"] for x in lines} == {"bfloat16", "float64"}
    assert {x["verdict"] for x in lines} <= {"pass", "not judged"}
