"""The command for a GPU, in a short form, on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from candidates import needs_torch
from conftest import FIXTURES, HERE

RUN = HERE / "tools" / "gpu_run.py"


def test_it_counts_what_an_adapter_left_to_the_cpu() -> None:
    sys.path.insert(0, str(RUN.parent))
    from gpu_run import left_to_the_cpu

    ran = "x (llvmpipe (LLVM 19, 256 bits), software; {} of 9 nodes{}); "
    one = (
        ran.format(9, "")
        + ran.format(8, ", on the CPU 1 Cast")
        + ran.format(6, ", on the CPU 3 Or")
    )
    two = ran.format(6, ", on the CPU 1 Cast, 2 Or") + ran.format(9, "")
    cases = [{"dtype": "float32", "ran": x} for x in (one, two)] + [{"dtype": "float32"}]
    *_, forward, experiment = left_to_the_cpu({"cases": cases}).splitlines()
    assert forward == "| float32, forward pass | 18 | 3 | 1 of 2 | 1 Cast, 2 Or |"
    assert experiment == "| float32, experiment | 18 | 3 | 1 of 2 | 3 Or |"


@needs_torch
@pytest.mark.parametrize("case", ["llama", "sink"])
def test_it_runs_on_the_cpu(case: str, tmp_path: Path) -> None:
    output, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    page.write_text("before\n<!-- runs -->\n<!-- end -->\nafter\n")
    words = ("--device", "cpu", "--cases", case, "--dtypes", "float32", "tf32",
             "--jobs", "1", "--no-forward")  # fmt: skip
    done = subprocess.run(
        [sys.executable, RUN, *words, "-o", output, "--page", page],
        capture_output=True, text=True, check=False, cwd=FIXTURES.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    graphs = {"graph of the trace", "graph of the experiment"} if case == "llama" else set()
    assert {x["way"] for x in document["cases"]} - graphs == {"chained", "stepwise"}
    assert {(x["dtype"], x["verdict"]) for x in document["cases"]} == {("float32", "pass")}
    worst = [x for of in document["summary"].values() for x in of["steps"].values()]
    assert all(0 <= x["used"] <= 1 for x in worst)
    assert document["settings"]["packages"]["torch"]
    assert "| float32, stepwise | 1 | 1 | 0 | 0 | 0 |" in page.read_text()
