"""Every figure of docs/performance.md, measured side by side.

    python tests/tools/benchmarks/run.py -o results.json --models FOLDER
    python tests/tools/benchmarks/performance_page.py results.json

Sides take turns, each in a process of its own (the arithmetic rate: by turns in one process).
A figure is the median of its repetitions, with the lowest and highest. `--models` names the folder
that docs/how-to/real-models.md fills; shapes that are not there get random weights. The rivals
need torch and transformers; nothing is left behind in the scratch folder.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import machine
import scoring_profile
from figure import as_json, line
from rows import ROWS, Setting

PROFILE = "profile"


def measured(
    setting: Setting, rows: list[str], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run rows, print and keep each figure as it comes; one that fails leaves the others."""
    found: dict[str, Any] = {
        "machine": machine.machine(), "quick": setting.quick,
        "repetitions": setting.repetitions, "figures": [], "rows": {}, "profiles": [],
    }  # fmt: skip
    for name in rows:
        before, start, failed = machine.load(), time.perf_counter(), None
        try:
            if name == PROFILE:
                for profile in scoring_profile.profiles(setting):
                    print(scoring_profile.line(profile), flush=True)
                    found["profiles"].append(profile)
            else:
                for figure in ROWS[name](setting):
                    print(line(figure), flush=True)
                    found["figures"].append(as_json(figure))
                    keep(found)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            failed = str(error)
        found["rows"][name] = {
            "seconds": time.perf_counter() - start, "load_before": before,
            "load_after": machine.load(), "failed": failed, "only": list(setting.only),
        }  # fmt: skip
        keep(found)
    return found


def main() -> None:
    """Measure, print, and write the results."""
    every = [*ROWS, PROFILE]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=every, default=every, metavar="NAME")
    parser.add_argument("--models", type=Path, help="folder of real models")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--shapes", nargs="+", metavar="NAME", help="such as SmolLM2-135M")
    parser.add_argument("--scratch", help="where a temporary folder is made")
    parser.add_argument("--into", type=Path, help="results of other rows, to be completed")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    old = json.loads(given.into.read_text()) if given.into else None

    def keep(found: dict[str, Any]) -> None:
        if given.output:
            whole = found if old is None else merged(old, found)
            given.output.write_text(json.dumps(whole, indent=1) + "\n")

    with TemporaryDirectory(dir=given.scratch) as scratch:
        repetitions = 1 if given.quick else given.repetitions
        only = tuple(given.shapes or ())
        setting = Setting(Path(scratch), given.models, given.quick, repetitions, only)
        found = measured(setting, given.rows, keep)
    met, missed = (
        sum(entry["verdict"].startswith(word) for entry in found["figures"])
        for word in ("pass", "falls")
    )
    failed = [name for name, row in found["rows"].items() if row["failed"]]
    print(f"{met} figures pass, {missed} fall short; rows that failed: {failed or 'none'}")
    sys.exit(bool(failed))


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Earlier results with the rows that were measured again in place of theirs."""
    again = set(new["rows"])
    kept = [entry for entry in old["figures"] if entry["row"] not in again]
    order = list(ROWS)
    figures = sorted(kept + new["figures"], key=lambda entry: order.index(entry["row"]))
    profiles = new["profiles"] if PROFILE in again else old["profiles"]
    assert old["machine"]["cpu"] == new["machine"]["cpu"], "figures of two machines"
    rows = {**old["rows"], **new["rows"]}
    return {**new, "rows": rows, "figures": figures, "profiles": profiles}


if __name__ == "__main__":
    main()
