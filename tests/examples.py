"""Every example in README.md, docs/ and the docstrings, as a test: what a reader types is run.

A page runs from top to bottom, in one folder where the top of the repository is in sight:

- a ```python block, in an empty namespace, or after a line `<!-- goes on -->` in that of the block
  before it; `>>>` lines are compared with what they print;
- a ```console block: each `$` line in a shell, and what it prints compared with what follows it.
  `...` stands for anything, the last decimal may be off by one, and a command must succeed unless
  the next line is `$ echo $?`;
- a ```bash block, which must succeed, unless docs/how-to/contribute.md says why it does not run.

A picture that a page draws, under the name of one beside the page, must be that picture.

The `>>>` lines of a docstring run by themselves, in the namespace of its module.

Run one page with `pytest tests/docs/test_examples.py docs/index.md`, and write what the console
blocks print now into the pages with `python tests/examples.py README.md docs/index.md`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from difflib import unified_diff
from doctest import ELLIPSIS, DocTest, DocTestParser, DocTestRunner
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sybil import Document, Example, Region, Sybil
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).parent.parent
MAIN = 'import sys; sys.argv[0] = "refimpl"; from refimpl.cli.main import main; main()'
PROGRAMS = {"refimpl": f"-W error -c '{MAIN}'", "python": ""}
BLOCK = re.compile(
    r"^(<!-- goes on -->\n)?```(python|console|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
REASONS = ROOT / "docs" / "how-to" / "contribute.md"
REASON = re.compile(r"^\| `([^`]+\.md)` \| `([^`]+)` \| `?(\w+|-)`? \| \S.* \|$", re.MULTILINE)
REAL = os.environ.get("REFIMPL_REAL")
END = "\x1e"  # printed after each command, with its exit code
ROUNDS = 5


@dataclass(frozen=True)
class Block:
    """A fenced block of a page that a reader runs."""

    line: int
    goes_on: bool
    language: str
    text: str


def blocks_to_run(page: Path, marker: str = "-") -> list[Block]:
    """Blocks of a page that run: of those with a reason not to, the ones that a marker selects."""
    text = page.read_text("utf-8")
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else ""
    others = tuple(
        first
        for where, first, needs in REASON.findall(REASONS.read_text("utf-8"))
        if where == name and (needs == "-" or needs != marker)
    )
    found = []
    for match in BLOCK.finditer(text):
        goes_on, language, code = match.groups()
        if language != "bash" or not code.startswith(others):
            line = text.count("\n", 0, match.start(2)) + 1
            found.append(Block(line, bool(goes_on), language, code))
    return found


@contextmanager
def repository() -> Iterator[Path]:
    """A temporary folder with links to what lies at the top of the repository."""
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for entry in ROOT.iterdir():
            if not entry.name.startswith("."):
                (folder / entry.name).symlink_to(entry)
        if REAL and not (folder / "real").exists():
            (folder / "real").symlink_to(Path(REAL).resolve())
        yield folder


@contextmanager
def reader() -> Iterator[Path]:
    """What a page or a docstring runs under: the repository in sight, loud arithmetic."""
    loud = np.errstate(over="raise", invalid="raise", divide="raise")
    with repository() as folder, chdir(folder), loud, threadpool_limits(1, "blas"):
        yield folder


# Python


def run_session(source: str, namespace: dict[str, Any], path: str, line: int) -> str:
    """Run `>>>` lines; returns what went wrong, or nothing. `line` is that of the first one."""
    examples = DocTestParser().get_examples(source, path)
    start = line - 1 - examples[0].lineno
    out: list[str] = []
    test = DocTest(examples, {}, "example", path, start, None)
    test.globs = namespace  # not a copy: the next block may go on in it
    runner = DocTestRunner(optionflags=ELLIPSIS, verbose=False)
    runner.run(test, out=out.append, clear_globs=False)
    return "".join(out)


def run_python(block: Block, namespace: dict[str, Any], path: str) -> str:
    """Run a ```python block; returns what went wrong, or nothing."""
    if not block.goes_on:
        namespace.clear()
        namespace["__name__"] = "__main__"
    if block.text.startswith(">>>"):
        return run_session(block.text, namespace, path, block.line + 1)
    exec(compile("\n" * block.line + block.text, path, "exec"), namespace)
    return ""


def run_docstring(example: Example) -> str:
    """Run the `>>>` lines of one docstring on a copy of its module's namespace."""
    with reader():
        return run_session(example.parsed, dict(example.namespace), example.path, example.line)


def docstring_examples(document: Document) -> Iterable[Region]:
    """One region from the first `>>>` of a docstring to its end."""
    first = re.search(r"^ *>>> ", document.text, re.MULTILINE)
    if first:
        yield Region(first.start(), len(document.text), document.text, run_docstring)


# Console


def commands(block: str) -> list[tuple[str, str]]:
    """Commands of a console block, with what they are to print; a backslash continues a command."""
    found: list[tuple[str, str]] = []
    open_command = False
    for line in block.splitlines(keepends=True):
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif not found:
            raise ValueError(f"a console block starts with {line!r}, expected `$ command`")
        elif open_command:
            found[-1] = (found[-1][0] + line, "")
        else:
            found[-1] = (found[-1][0], found[-1][1] + line)
        open_command = not found[-1][1] and found[-1][0].endswith("\\\n")
    return found


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of bash as a reader would, with both streams in one."""
    noisy = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
    quiet = {key: value for key, value in os.environ.items() if key not in noisy}
    with TemporaryDirectory() as programs:
        for name, options in PROGRAMS.items():
            Path(programs, name).write_text(
                f"#!/bin/sh\nexec '{sys.executable}' {options} \"$@\"\n"
            )
            Path(programs, name).chmod(0o755)
        quiet |= {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "COLUMNS": "100",
            "OPENBLAS_NUM_THREADS": "1",  # two threads in two programs wait for each other
        }
        return subprocess.run(
            ["bash", "-c", script],
            cwd=folder,
            env=quiet,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=3000 if REAL else 300,
            check=False,
        )


def outputs(block: str, folder: Path) -> list[tuple[int, str]]:
    """Exit code and output (both streams) of every command of a console block."""
    script = "".join(
        f"(exit $code)\n{command}code=$?; printf '\\036%d\\n' $code\n"
        for command, _ in commands(block)
    )
    printed = re.findall(rf"([^{END}]*){END}(\d+)\n", shell("code=0\n" + script, folder).stdout)
    return [(int(code), text) for text, code in printed]


def matches(expected: str, got: str) -> bool:
    """Whether output is as expected: `...` is anything, the last decimal may be off by one."""
    pattern, numbers = "", []
    for part in re.split(r"(\.\.\.|(?<![\d.])\d+\.\d+(?![\d.]))", expected):
        if part == "...":
            pattern += ".*?"
        elif re.fullmatch(r"\d+\.\d+", part):
            numbers.append(part)
            pattern += r"(\d+\.\d+)"
        else:
            pattern += re.escape(part)
    found = re.fullmatch(pattern, got, re.DOTALL)
    return found is not None and all(
        units_apart(want, have) <= 1 for want, have in zip(numbers, found.groups(), strict=True)
    )


def units_apart(*numbers: str) -> int:
    """How far two decimals differ, in units of the last place: one may omit a final zero."""
    places = max(len(number.partition(".")[2]) for number in numbers)
    one, other = (round(float(number) * 10**places) for number in numbers)
    return abs(one - other)


def problem(block: str, folder: Path) -> str:
    """Run a console block; returns what is not as it says, or nothing."""
    wanted, found = commands(block), outputs(block, folder)
    if len(found) != len(wanted):
        return f"{len(wanted)} commands, of which {len(found)} came to an end"
    for i, ((command, expected), (code, got)) in enumerate(zip(wanted, found, strict=True)):
        asked = i + 1 < len(wanted) and wanted[i + 1][0] == "echo $?\n"
        if code and not asked:
            return (
                f"$ {command}exit code {code}, and no `$ echo $?` that says so; it printed\n{got}"
            )
        if not matches(expected, got):
            lines = unified_diff(
                expected.splitlines(), got.splitlines(), "the page", "the program", lineterm=""
            )
            return f"$ {command}" + "\n".join(lines)
    return ""


# Pages


def run_block(block: Block, namespace: dict[str, Any], path: str, folder: Path) -> str:
    """Run a block of a page; returns what went wrong, or nothing."""
    if block.language == "python":
        return run_python(block, namespace, path)
    if block.language == "console":
        return problem(block.text, folder)
    done = shell("set -euo pipefail\n" + block.text, folder)
    return done.stdout + f"exit code {done.returncode}" if done.returncode else ""


def problems(page: Path, blocks: list[Block]) -> str:
    """Run blocks of a page in their order, in one folder; returns what went wrong, or nothing."""
    namespace: dict[str, Any] = {}
    with reader() as folder:
        found = [(x.line, run_block(x, namespace, str(page), folder)) for x in blocks]
        found += [
            (0, f"{path.name} is another picture") for path, _ in other_pictures(page, folder)
        ]
    return "\n\n".join(
        f"{page}:{line}: {wrong}\nIf the program is right: python tests/examples.py {page}"
        for line, wrong in found
        if wrong
    )


def other_pictures(page: Path, folder: Path) -> Iterator[tuple[Path, str]]:
    """Pictures beside a page that it has drawn otherwise, and what it drew."""
    for drawn in folder.glob("*.svg"):
        beside, text = page.parent / drawn.name, drawn.read_text("utf-8")
        if beside.exists() and not matches(beside.read_text("utf-8"), text):
            yield beside, text


def run_page(example: Example) -> str:
    """Run the blocks of a page."""
    return problems(Path(example.path), example.parsed)


def page_examples(document: Document) -> Iterable[Region]:
    """One region for all blocks of a page that run."""
    blocks = blocks_to_run(Path(document.path))
    if blocks:
        yield Region(0, len(document.text), blocks, run_page)


MARKDOWN = Sybil(
    parsers=[page_examples],
    path=str(ROOT),
    filenames=["README.md"],
    patterns=["docs/*.md", "docs/*/*.md", "docs/*/*/*.md"],
)
DOCSTRINGS = Sybil(
    parsers=[docstring_examples],
    path=str(ROOT),
    patterns=["refimpl/*.py", "refimpl/*/*.py", "refimpl/*/*/*.py"],
)
pytest_collect_file = (MARKDOWN + DOCSTRINGS).pytest()


def refreshed(block: str, folder: Path) -> str:
    """A console block with what its commands print now; lines that still match stay."""
    new = ""
    for (command, expected), (_, got) in zip(commands(block), outputs(block, folder), strict=True):
        old, now = expected.splitlines(), got.splitlines()
        if len(old) == len(now):
            now = [a if matches(a, b) else b for a, b in zip(old, now, strict=True)]
        kept = expected if matches(expected, got) else "".join(f"{line}\n" for line in now)
        new += f"$ {command}{kept}"
    return new


def refresh(page: Path) -> None:
    """Write what the console blocks of a page print now; a page may be its own input."""
    for _ in range(ROUNDS):
        new = text = page.read_text("utf-8")
        namespace: dict[str, Any] = {}
        with reader() as folder:
            for block in blocks_to_run(page):
                if block.language == "console":
                    shown = refreshed(block.text, folder)
                    new = new.replace(f"```console\n{block.text}```", f"```console\n{shown}```", 1)
                else:
                    run_block(block, namespace, str(page), folder)
            for path, drawn in other_pictures(page, folder):
                path.write_text(drawn, "utf-8")
        if new == text:
            return
        page.write_text(new, "utf-8")
    raise SystemExit(f"{page}: its output changes its own input; move a paragraph")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh(Path(name).resolve())
