"""Input that cannot be used: one clear error, exit code 2, nothing written, nothing touched."""

import errno
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from conftest import FIXTURES
from processes import ENV, PROGRAM
from program import Result, refusal, run
from tables import cases

from refimpl.running.threads import Progress

SMALL = "--samples 1 --seq-len 4"
WORDS = "Entia non sunt multiplicanda praeter necessitatem.\n" * 4


def state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and time of change of every file under a folder, and every folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.lstat().st_mtime_ns)
        if path.is_file()
        else (b"", 0)
        for path in sorted(folder.rglob("*"))
    }


def refused(command: str, *words: str) -> str:
    """Run in the current folder, see it refused and nothing changed; returns the error."""
    before = state(Path())
    error = refusal(
        run(*command.split(), *([] if "-o " in command else ["-o", "out/new.json"]))
    )
    assert state(Path()) == before
    for word in words:
        assert word in error, error
    return error


@contextmanager
def never(label: str) -> Iterator[Progress]:
    """In the place of the progress bar: fail if any work begins."""

    def began(done: float, total: float) -> None:
        raise AssertionError("the experiment began before the error was found")

    yield began


@pytest.fixture(scope="session")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what `refimpl score -o` wrote, with noise and with the pruning perturbation."""
    folder = tmp_path_factory.mktemp("scores")
    for name, options in (
        ("scores", "--perturbation gaussian --eta 0.01,1"),
        ("pruning", "--correct none"),
    ):
        words = f"--samples 2 --seq-len 6 {options}".split()
        assert (
            run("score", FIXTURES / "llama", *words, "-o", folder / f"{name}.json").code
            == 0
        )
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, scores: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model, its scores and other inputs that are valid."""
    shutil.copytree(
        FIXTURES / "llama",
        tmp_path / "model",
        ignore=shutil.ignore_patterns("expected*"),
    )
    shutil.copytree(scores, tmp_path, dirs_exist_ok=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "text.txt").write_text(WORDS)
    (tmp_path / "base.json").write_text("[0.7, 0.7, 0.7, 0.7]")
    np.save(tmp_path / "ids.npy", np.arange(200) % 250)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Options


@pytest.mark.parametrize(("options", "says"), cases("cli", "options"))
def test_options(options: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refimpl.cli.score.progress_bar", never)
    given = {word for word in options.split() if word.startswith("--")}
    small = [
        f"{name} {n}"
        for name, n in (("--samples", 1), ("--seq-len", 4))
        if name not in given
    ]
    refused(f"score model {' '.join(small)} {options}", says)


# Outputs


@pytest.mark.parametrize("output", ["", ".", "/"])
@pytest.mark.parametrize(
    "words",
    [
        *("eval model --text text.txt", "allocate scores.json", "prune model --nm 2:4"),
        *("export model", "plot scores.json", "inspect model"),
    ],
)
def test_outputs_without_a_name(words: str, output: str) -> None:
    result = run(*words.split(), "-o", output)
    assert result.code == 2, result.err
    assert result.err.startswith("error: -o ")
    assert "Traceback" not in result.err


# Files that may not be read


@pytest.mark.parametrize(("name", "command"), cases("cli", "unreadable"))
def test_a_file_that_may_not_be_read(
    name: str, command: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(here / "ids.npy", [[1, 2, 3, 4]])
    really, library = (
        open,
        sys.modules["refimpl.loading.files.safetensors_file"].safe_open,
    )
    before = state(here)

    def denied(opened: Callable[..., Any]) -> Callable[..., Any]:
        def one(path: Any, *rest: Any, **more: Any) -> Any:
            if Path(str(path)).name == name:
                raise PermissionError(
                    errno.EACCES, os.strerror(errno.EACCES), str(path)
                )
            return opened(path, *rest, **more)

        return one

    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: os.path.basename(path) != name)
        patched.setattr("builtins.open", denied(really))
        patched.setattr("io.open", denied(really))
        patched.setattr(
            "refimpl.loading.files.safetensors_file.safe_open", denied(library)
        )
        small = SMALL if command.startswith("score") else ""
        result = run(*command.split(), *small.split(), "-o", "out/new.json")
    error = refusal(result)
    assert name in error
    assert "Permission denied" in error
    assert state(here) == before


# Scores


@pytest.mark.parametrize(("words", "says"), cases("cli", "allocate"))
def test_allocations(words: str, says: str) -> None:
    refused(f"allocate {words}", says)


# What nobody expects


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            MemoryError("Unable to allocate 9.9 TiB"),
            ("out of memory", "9.9 TiB", "--memory"),
        ),
        (
            OSError(errno.EIO, os.strerror(errno.EIO), "model.safetensors"),
            ("model.safetensors", os.strerror(errno.EIO)),
        ),
    ],
)
def test_faults_of_the_machine(
    fault: Exception, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refimpl.cli.score.score", Mock(side_effect=fault))
    refused(f"score model {SMALL}", *words)


def test_a_fault_of_the_program_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With an exit code of its own: 1 is a disagreement."""
    monkeypatch.setattr("refimpl.cli.score.score", Mock(side_effect=ZeroDivisionError))
    result = run("score", "model", *SMALL.split())
    assert (result.code, result.out) == (70, "")
    assert result.err.startswith("Traceback")
    assert "error: refimpl itself failed (ZeroDivisionError" in result.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (f"score model {SMALL} -o out/new.json", "out/.new.json.part/"),
        (f"case make model {SMALL} -o out/case", "out/case"),
    ],
)
def test_a_limit_on_the_size_of_files(words: str, says: str, here: Path) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    before = state(here)
    command = [*PROGRAM, *words.split()]
    env = ENV | {"PYTHONUNBUFFERED": "", "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=60, preexec_fn=limited
    )
    error = refusal(Result(done.returncode, done.stdout, done.stderr))
    assert says in error
    assert "-o" in error
    assert state(here) == before


def test_a_disk_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(os, "preadv", Mock(side_effect=fault))
    refused(f"score model {SMALL}", "model.safetensors", os.strerror(errno.EIO))


def test_nobody_reads_stdout(here: Path) -> None:
    case = FIXTURES / "cases" / "llama"
    check = shlex.join(["check", str(case), str(case / "expected.safetensors")])
    for words, code in (
        (f"{check} --json | true", 74),
        ("inspect model >&-", 0),
        ("inspect model <&- >&- 2>&-", 0),
    ):
        command = f"set -o pipefail; {shlex.join(PROGRAM)} {words}"
        done = subprocess.run(
            ["bash", "-c", command], env=ENV, capture_output=True, check=False
        )
        assert (done.returncode, done.stderr) == (code, b""), words


@pytest.mark.parametrize(("command", "says"), cases("cli", "commands"))
def test_commands(command: str, says: str) -> None:
    assert says in refusal(run(*command.split()))
