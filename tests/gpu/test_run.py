"""The command for a GPU, in a short form, on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from candidates import needs_torch
from conftest import FIXTURES

RUN = Path(__file__).parent / "run.py"


@needs_torch
@pytest.mark.parametrize("case", ["llama", "sink"])
def test_it_runs_on_the_cpu(case: str, tmp_path: Path) -> None:
    output, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    page.write_text("before\n<!-- runs -->\n<!-- end of runs -->\nafter\n")
    words = ("--device", "cpu", "--cases", case, "--dtypes", "float32", "tf32", "--no-forward")
    done = subprocess.run(
        [sys.executable, RUN, *words, "-o", output, "--page", page],
        capture_output=True, text=True, check=False, cwd=FIXTURES.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    assert [(x["dtype"], x["way"], x["verdict"]) for x in document["cases"]] == [
        ("float32", "chained", "pass"), ("float32", "stepwise", "pass"),
    ]  # fmt: skip
    assert all(0 <= y["used"] <= 1 for x in document["cases"] for y in x["steps"].values())
    assert document["settings"]["packages"]["torch"]
    assert "| float32 | stepwise | 1 | 1 | 0 | 0 | 0 |" in page.read_text()
