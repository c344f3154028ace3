"""Fuzzing of the program: `python tests/fuzz/fuzz.py --cases 20000 --seed 1`.

Every case is a run in a forked child. It fails on a traceback, a signal, a hang, more memory than
allowed, a wrong exit code, a message that is not one of ours, control characters in the output, a
changed input, or anything left over. A failure prints as one JSON line, which can be repeated by
its number: `--only N`.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
os.environ.pop("GITHUB_STEP_SUMMARY", None)

from regressions import REGRESSIONS  # noqa: E402
from server import MEMORY, Left, adopt_orphans, run_forked  # noqa: E402
from targets import FuzzCase, file_case, make_folder, option_case  # noqa: E402

MESSAGE = re.compile(r"error: [^\n]+\n(  [^\n]+\n)*expected: [^\n]+\nnext: [^\n]+\n")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
JUDGING = ("validate", "check")  # exit with 1 or 3, too
OPTIONS, GRAPHS = 0.35, 0.015  # shares of cases with changed options, and with changed graphs


def case_of(number: int, seed: int, folder: Path) -> FuzzCase:
    """The case with a number."""
    random = Random(f"{seed}:{number}")
    share = random.random()
    if share < OPTIONS:
        return option_case(random)
    return file_case(folder, random, share > 1 - GRAPHS)


def state(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Every file, link and folder below a folder, with its content."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = ("link", os.fsencode(os.readlink(path)))
        elif path.is_file():
            found[name] = ("file", path.read_bytes())
        else:
            found[name] = ("other", b"")
    return found


def faults(case: FuzzCase, left: Left, before: dict, after: dict) -> list[str]:
    """What is wrong with a run."""
    err, out = left.err.decode("utf-8", "replace"), left.out.decode("utf-8", "replace")
    allowed = (0, 1, 2, 3) if case.words[:1] and case.words[0] in JUDGING else (0, 2)
    wrong = []
    if left.hung:
        wrong.append("hangs")
    if left.code not in allowed:
        wrong.append(f"exit code {left.code}")
    if "Traceback" in err:
        wrong.append("traceback")
    if left.code == 2 and not MESSAGE.fullmatch(err):
        wrong.append("message")
    if left.code == 2 and out:
        wrong.append("output beside an error")
    if left.code in (0, 1, 3) and err:
        wrong.append("noise on stderr")
    if CONTROL.search(out + err):
        wrong.append("control characters")
    if left.memory > MEMORY:
        wrong.append(f"memory {left.memory >> 20} MiB")
    if left.orphans:
        wrong.append("a process left over")
    changed = sorted(n for n in before if after.get(n) != before[n])
    new = sorted(n for n in after.keys() - before.keys())
    replaced = set(case.words) | {f"{word}.data" for word in case.words}
    if changed and (left.code == 2 or "--force" not in case.words or set(changed) - replaced):
        wrong.append(f"changed {changed[:3]}")
    roots = {name.split("/")[0] for name in new}
    if roots and (
        left.code == 2 or not roots <= {os.path.normpath(w).split("/")[0] for w in replaced}
    ):
        wrong.append(f"left {sorted(roots)[:3]}")
    return wrong


def run_case(case: FuzzCase, folder: Path, scratch: Path) -> tuple[list[str], Left]:
    """Run one case on a copy of the folder."""
    shutil.copytree(folder, scratch, symlinks=True, copy_function=copied)
    if case.file is not None:
        (scratch / case.file).unlink()
        (scratch / case.file).write_bytes(case.content)
    before = state(scratch)
    left = run_forked(case.words, scratch)
    wrong = faults(case, left, before, state(scratch))
    shutil.rmtree(scratch)
    return wrong, left


def copied(source: str, target: str) -> None:
    """Copy a file; a pipe is made anew."""
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target)


def prepare(parent: Path) -> Path:
    """Import the program, which the children then have, and make the folder of good inputs."""
    import refimpl.cli.main
    import refimpl.oracle.check
    import refimpl.report.page
    import refimpl.show.oracle  # noqa: F401

    adopt_orphans()
    folder = parent / "good"
    make_folder(folder)
    return folder


def main() -> int:
    """Run cases, print failures and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--regressions", action="store_true", help="run the known ones instead")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after")
    asked = parser.parse_args()
    numbers = range(asked.first, asked.first + asked.cases) if asked.only is None else [asked.only]
    if asked.regressions:
        numbers = range(len(REGRESSIONS))
    counts, codes, failed, started = Counter(), Counter(), 0, time.monotonic()
    worst = {"seconds": 0.0, "MiB": 0}
    with tempfile.TemporaryDirectory() as parent:
        folder = prepare(Path(parent))
        for number in numbers:
            if time.monotonic() - started > asked.seconds:
                break
            known = asked.regressions
            case = REGRESSIONS[number] if known else case_of(number, asked.seed, folder)
            wrong, left = run_case(case, folder, Path(parent) / "case")
            counts[case.mutator] += 1
            codes[left.code] += 1
            worst["seconds"] = max(worst["seconds"], round(left.seconds, 1))
            worst["MiB"] = max(worst["MiB"], left.memory >> 20)
            if wrong or asked.only is not None:
                failed += bool(wrong)
                shown = {
                    "case": number, "seed": asked.seed, "wrong": wrong, "words": case.words,
                    "file": case.file, "mutator": case.mutator, "code": left.code,
                    "seconds": round(left.seconds, 2),
                    "err": left.err.decode("utf-8", "replace")[-700:],
                }  # fmt: skip
                print(json.dumps(shown), flush=True)
    minutes = (time.monotonic() - started) / 60
    print(
        f"{sum(counts.values()):,} cases in {minutes:.1f} min, {failed} failures; "
        f"exit codes {dict(sorted(codes.items()))}; worst {worst}; cases by mutator {dict(counts)}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
