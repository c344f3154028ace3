"""The test suite under each of OpenBLAS's kernels, as a table: which pass, and in what time.

    python tests/tools/kernels.py kernels.json -n 2              # the whole suite
    python tests/tools/kernels.py kernels.json -n 2 -m numerical

Each row is one run of pytest with the words after the file. It also names the kernel that OpenBLAS
reports: it takes the processor's own if it does not know the name or the processor cannot run it.
To continue an interrupted table, run the same command on the same commit.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
KERNELS = ("Prescott", "Nehalem", "Sandybridge", "Haswell", "Zen", "SkylakeX", "")  # "": unset
THREADS = (1, 2)
PROBE = """
import json, numpy, threadpoolctl
(blas,) = (x for x in threadpoolctl.threadpool_info() if x["user_api"] == "blas")
print(json.dumps({"reported": blas.get("architecture"), "blas_threads": blas["num_threads"],
                  "blas": blas["version"], "numpy": numpy.__version__}))
"""

Row = dict[str, Any]


def environment(kernel: str, threads: int) -> dict[str, str]:
    """This environment with a kernel and a number of threads, and nothing else of OpenBLAS."""
    others = ("OPENBLAS_", "GOTO_", "OMP_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    chosen = {"OPENBLAS_CORETYPE": kernel} if kernel else {}
    return kept | chosen | {"OPENBLAS_NUM_THREADS": str(threads)}


def outcome(report: Path) -> Row:
    """How many tests passed, failed and were skipped, and which failed, by pytest's XML."""
    root = ElementTree.parse(report).getroot()
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in root.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    cases, skipped = (sum(1 for _ in root.iter(x)) for x in ("testcase", "skipped"))
    return {
        "passed": cases - skipped - len(failed),
        "failed": len(failed),
        "skipped": skipped,
        "failures": failed,
    }


def run(kernel: str, threads: int, words: list[str]) -> Row:
    """Run pytest under one kernel; a run that ends without a report is a row, too."""
    env, started = environment(kernel, threads), time.monotonic()
    probe = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True)
    row: Row = {"kernel": kernel, "threads": threads}
    if probe.returncode:
        return row | {"exit": probe.returncode, "error": probe.stderr.strip()[-500:]}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *words]
        done = subprocess.run(command, cwd=ROOT, env=env, check=False)
        row |= json.loads(probe.stdout)
        row |= {"exit": done.returncode, "seconds": round(time.monotonic() - started)}
        return row | (outcome(report) if report.exists() else {"error": "no report"})


def table(rows: list[Row]) -> str:
    """The rows in Markdown, with the failures below."""
    lines = [
        "| OPENBLAS_CORETYPE | kernel | threads | NumPy | passed | failed | skipped | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        failed = row.get("failed", f"exit {row['exit']}")
        cells = [row["kernel"] or "(unset)", row.get("reported", "-"), row["threads"]]
        cells += [row.get("numpy", "-"), row.get("passed", "-"), failed]
        cells += [row.get("skipped", "-"), row.get("seconds", "-")]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    for row in rows:
        where = f"{row['kernel'] or '(unset)'}, {row['threads']} threads"
        wrong = row.get("failures", []) + ([row["error"]] if "error" in row else [])
        lines += [f"\n{where}: {name}" for name in wrong]
    return "\n".join(lines)


def commit() -> str:
    """The commit and the changes of this checkout, in a line."""
    git = ("git", "describe", "--always", "--abbrev=40", "--dirty")
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def main(path: Path, words: list[str]) -> int:
    """Run the rows that the file lacks, and print the table; 1 if a row is red."""
    of: Row = {"commit": commit(), "words": words}
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    same = {key: content.get(key) for key in of} == of and not of["commit"].endswith("-dirty")
    rows: list[Row] = content["rows"] if same else []
    have = {(row["kernel"], row["threads"]) for row in rows}
    for kernel in KERNELS:
        for threads in THREADS:
            if (kernel, threads) in have:
                continue
            print(f"== {kernel or '(unset)'}, {threads} BLAS threads", flush=True)
            rows.append(run(kernel, threads, words))
            part = path.with_name(f"{path.name}.part")
            part.write_text(json.dumps(of | {"rows": rows}, indent=1) + "\n", "utf-8")
            part.replace(path)
    print(table(rows))
    return int(any(row["exit"] for row in rows))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2:]))
