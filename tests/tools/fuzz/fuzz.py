"""Fuzzing of the program: `python tests/tools/fuzz/fuzz.py --cases 20000 --seed 1`.

Every case is a run in a forked child. It fails on a traceback, a signal, a hang, more memory than
allowed, a wrong exit code, a message that is not one of ours, control characters in the output, a
changed input, or anything left over. A failure prints as one JSON line, which can be repeated by
its number: `--only N`.
"""

import argparse
import gc
import json
import os
import pkgutil
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "fuzz"), *map(str, HERE.parents[:3])]
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
os.environ |= {
    "HF_HUB_CACHE": "hub",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}

import own_records  # noqa: E402
import typer  # noqa: E402
from mutators import KINDS  # noqa: E402
from regressions import REGRESSIONS  # noqa: E402
from server import CPU, MEMORY, Left, adopt_orphans, run_forked  # noqa: E402
from targets import (  # noqa: E402
    FuzzCase,
    commands,
    file_case,
    good_cases,
    make_folder,
    option_case,
    record_case,
)

MESSAGE = re.compile(r"error: [^\n]+\n(  [^\n]+\n)*expected: [^\n]+\nnext: [^\n]+\n")
CONTROL = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)
JUDGING = ("validate", "check", "fuzz")  # exit with 1 or 3, too
NOT_IMPORTED = ("refimpl.__main__", "refimpl.testing.plugin")
LATE = (  # what commands import when they need it
    *("gguf", "onnx.reference", "numpy.ma", "subprocess", "huggingface_hub.hf_api"),
    *("huggingface_hub.file_download", "huggingface_hub.utils.tqdm"),
    *("importlib.readers", "typer.rich_utils"),
)
SHARES = {option_case: 0.3, record_case: 0.12}  # the other cases change files
SLOW = 0.04  # share of slow ones


def case_of(number: int, seed: int, folder: Path) -> FuzzCase:
    """The case with a number."""
    random = Random(f"{seed}:{number}")
    share = random.random()
    for make, of in SHARES.items():
        if share < of:
            return make(random)
        share -= of
    return file_case(folder, random, random.random() < SLOW)


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Every file, link and folder below a folder; its facts change with its content."""
    found: dict[str, tuple[object, ...]] = {}
    for entry in os.scandir(folder):
        facts, is_folder = (
            entry.stat(follow_symlinks=False),
            entry.is_dir(follow_symlinks=False),
        )
        times = (
            () if is_folder else (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        )
        found[entry.name] = (facts.st_mode, facts.st_ino, *times)
        if is_folder:
            inside = state(Path(entry.path))
            found |= {f"{entry.name}/{name}": facts for name, facts in inside.items()}
    return found


def faults(case: FuzzCase, left: Left, before: dict, after: dict) -> list[str]:
    """What is wrong with a run."""
    err, out = left.err.decode("utf-8", "replace"), left.out.decode("utf-8", "replace")
    allowed = (0, 1, 2, 3) if case.words[:1] and case.words[0] in JUDGING else (0, 2)
    changed = sorted(n for n in before if after.get(n) != before[n])
    new = sorted(n for n in after.keys() - before.keys())
    outputs = {os.path.normpath(word) for word in case.words}
    outputs |= {f"{word}.data" for word in outputs}
    outputs |= (
        {".out.part", "bench"} if case.record else set()
    )  # what a next run continues
    spoils = left.code == 2 and not case.record
    inside = {
        n for n in [*changed, *new] if not outputs & {n, *map(str, Path(n).parents)}
    }
    replaces = "--force" in case.words or case.words[:1] == ["bench"]  # which continues
    found = {
        "refuses good files": left.code == 2 and case.mutator == "good",
        "hangs": left.hung,
        f"exit code {left.code}": left.code not in allowed,
        "traceback": "Traceback" in err,
        "message": left.code == 2 and not MESSAGE.fullmatch(err),
        "output beside an error": left.code == 2 and out,
        "noise on stderr": left.code in (0, 1, 3) and err,
        "control characters": CONTROL.search(out + err),
        f"{left.cpu:.0f} s of processor time": left.cpu > CPU,
        f"memory {left.memory >> 20} MiB": left.memory > MEMORY,
        "a process left over": left.orphans,
        f"changed {changed[:3]}": changed
        and (spoils or not replaces or inside & {*changed}),
        f"left {new[:3]}": new and (spoils or inside & {*new}),
    }
    return [fault for fault, holds in found.items() if holds]


class Scratch:
    """A copy of the folder of good inputs, in which cases run one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.copy = folder, folder.with_name("case")
        self.before: dict[str, tuple[object, ...]] = {}
        self.made: tuple[int, bytes, bytes] = (
            0,
            b"",
            b"",
        )  # code, output and weights of the last

    def judged(self, case: FuzzCase) -> tuple[list[str], Left]:
        """Run one case; what changes what it is given must make what a right record makes."""
        wrong, left = self.run(case)
        if (
            case.record
            and case.record[2] == own_records.THIEF
            and case.words[0] != "bench"
        ):
            made = self.made
            self.run(replace(case, record=(*case.record[:2], own_records.RIGHT)))
            wrong += ["other results"] if made != self.made else []
        return wrong, left

    def run(self, case: FuzzCase) -> tuple[list[str], Left]:
        """Run one case, and put back what it changed."""
        if not self.before:
            shutil.rmtree(self.copy, ignore_errors=True)
            shutil.copytree(self.folder, self.copy, symlinks=True, copy_function=copied)
            self.before = state(self.copy)
        before, path = self.before, self.copy / (case.file or "")
        if case.file is not None:
            path.unlink()
            if case.mutator in KINDS:
                KINDS[case.mutator](path, self.folder / case.file)
            else:
                path.write_bytes(case.content)
            before = state(self.copy)
        own_records.CHOSEN = case.record or own_records.CHOSEN
        left = run_forked(case.words, self.copy)
        after = state(self.copy)
        wrong = faults(case, left, before, after)
        weights = self.copy / "out/model.safetensors"
        self.made = (
            left.code,
            left.out,
            weights.read_bytes() if weights.is_file() else b"",
        )
        if any(after.get(name) != facts for name, facts in before.items()):
            self.before = {}
            return wrong, left
        for name in sorted(
            after.keys() - before.keys(), reverse=True
        ):  # what is in a folder first
            new = self.copy / name
            new.rmdir() if new.is_dir() and not new.is_symlink() else new.unlink()
        if case.file is not None:
            if case.content and path.read_bytes() != case.content:
                wrong.append("changed the changed file")  # within a tick of the clock
            path.rmdir() if case.mutator == "folder" else path.unlink()
            copied(str(self.folder / case.file), str(path))
            self.before = state(self.copy)
        return wrong, left


def copied(source: str, target: str) -> None:
    """Copy a file; a pipe is made anew."""
    if Path(source).is_fifo():
        os.mkfifo(target)
    else:
        shutil.copy2(source, target)


def prepare(parent: Path) -> Path:
    """Import the program, which the children then have, and make the folder of good inputs."""
    import refimpl

    for module in pkgutil.walk_packages(refimpl.__path__, "refimpl."):
        if module.name not in NOT_IMPORTED:
            import_module(module.name)
    for name in LATE:
        import_module(name)
    from refimpl.cli import main

    whole = typer.main.get_command(main.program())
    vars(main)["loaded"] = cache(main.loaded)
    commands()  # of the real program
    vars(main)["program"] = lambda: whole  # made once, not in each child
    adopt_orphans()
    folder, plugins = parent / "good", parent / "plugins"
    own_records.install(plugins)
    sys.path.append(str(plugins))
    make_folder(folder)
    gc.collect()
    gc.freeze()  # so that children share its pages
    return folder


def main() -> int:
    """Run cases, print failures and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument(
        "--regressions", action="store_true", help="run the known ones instead"
    )
    parser.add_argument("--good", action="store_true", help="run `good_cases` instead")
    asked = parser.parse_args()
    counts, codes, failed, started = Counter(), Counter(), 0, time.monotonic()
    slowest, largest = 0.0, 0
    with tempfile.TemporaryDirectory() as parent:
        folder = prepare(Path(parent))
        fixed = [*REGRESSIONS] * asked.regressions + good_cases() * asked.good
        numbers = (
            range(len(fixed) or asked.cases) if asked.only is None else [asked.only]
        )
        scratch = Scratch(folder)
        for number in numbers:
            case = fixed[number] if fixed else case_of(number, asked.seed, folder)
            wrong, left = scratch.judged(case)
            counts[case.mutator] += 1
            codes[left.code] += 1
            slowest, largest = (
                max(slowest, left.seconds),
                max(largest, left.memory >> 20),
            )
            if wrong or asked.only is not None:
                failed += bool(wrong)
                err = left.err.decode("utf-8", "replace")[-700:]
                known = {
                    "case": number,
                    "seed": asked.seed,
                    "wrong": wrong,
                    "code": left.code,
                }
                known |= {
                    "words": case.words,
                    "file": case.file,
                    "mutator": case.mutator,
                }
                shown = known | {"record": case.record, "err": err}
                print(json.dumps(shown), flush=True)
    took = (
        f"{sum(counts.values()):,} cases in {(time.monotonic() - started) / 60:.1f} min"
    )
    print(
        f"{took}, {failed} failures; exit codes {dict(sorted(codes.items()))}; at most"
    )
    print(f"{slowest:.1f} s and {largest} MiB; cases by mutator {dict(counts)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
