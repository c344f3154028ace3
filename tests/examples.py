"""Every example in README.md, docs/ and the docstrings, as a test: what a reader types is run.

A page runs from top to bottom, in one folder where the top of the repository is in sight:

- a ```python block as pasted into Python's shell, in an empty namespace, or after a line
  `<!-- goes on -->` in that of the block before it;
- a ```console block: each `$` line in a shell, and what it prints compared with what follows it.
  `...` stands for anything, the last decimal may be off by one, and a command must succeed unless
  the next line is `$ echo $?`;
- a ```bash block, which must succeed, unless tests/docs/cases.txt says why it does not run.

An ```output block is what the block right above it prints: exactly if that is Python, otherwise as
on a console; then a command may fail whose output a pipe takes. A picture that a page draws,
under the name of one beside the page, replaces it when the page is written.

The `>>>` lines of a docstring run by themselves, in the namespace of its module.

Run one page with `pytest tests/docs/test_examples.py docs/index.md`, and write what the blocks
print now into the pages with `python tests/examples.py README.md docs/index.md`.
"""

import os
import re
import subprocess
import sys
from codeop import compile_command
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import unified_diff
from doctest import ELLIPSIS, DocTest, DocTestParser, DocTestRunner
from io import StringIO
from operator import eq
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sybil import Document, Example, Region, Sybil
from tables import cases
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).parent.parent
MAIN = 'import sys; sys.argv[0] = "refimpl"; from refimpl.cli.main import main; main()'
PROGRAMS = {"refimpl": f"-W error -c '{MAIN}'", "python": ""}
BLOCK = re.compile(
    r"^(<!-- goes on -->\n)?```(python|console|bash)\n(.*?)^```$(?:\n```output\n(.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
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
    output: str | None = None


def blocks_to_run(page: Path, marker: str = "") -> list[Block]:
    """Blocks of a page that run: of those with a reason not to, the ones that a marker selects."""
    text = page.read_text("utf-8")
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else ""
    others = tuple(
        first
        for where, first, needs, _ in cases("docs", "not_run")
        if where == name and (not needs or needs != marker)
    )
    found = []
    for match in BLOCK.finditer(text):
        goes_on, language, code, output = match.groups()
        if language != "bash" or not code.startswith(others):
            line = text.count("\n", 0, match.start(2)) + 1
            found.append(Block(line, bool(goes_on), language, code, output))
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
    sys.path_importer_cache.clear()  # it knows relative names in folders that are gone
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
    """Paste a ```python block into a shell of Python, line by line; returns what it prints."""
    if not block.goes_on:
        namespace.clear()
        namespace["__name__"] = "__main__"
    shown, statement = StringIO(), list[str]()
    with redirect_stdout(shown):
        for number, line in enumerate([*block.text.splitlines(), ""], block.line):
            statement.append(line)
            above = "\n" * (
                number + 1 - len(statement)
            )  # so that errors name the page's line
            code = compile_command(above + "\n".join(statement), path, "single")
            if code:
                exec(code, namespace)
                statement.clear()
    assert not statement, f"not complete: {statement}"
    return shown.getvalue()


def run_docstring(example: Example) -> str:
    """Run the `>>>` lines of one docstring on a copy of its module's namespace."""
    with reader():
        return run_session(
            example.parsed, dict(example.namespace), example.path, example.line
        )


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
            raise ValueError(
                f"a console block starts with {line!r}, expected `$ command`"
            )
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


def outputs(texts: Iterable[str], folder: Path) -> list[tuple[int, str]]:
    """Exit code and output (both streams) of every command, in one shell."""
    script = "".join(
        f"(exit $code)\n{text}code=$?; printf '\\036%d\\n' $code\n" for text in texts
    )
    printed = re.findall(
        rf"([^{END}]*){END}(\d+)\n", shell("code=0\n" + script, folder).stdout
    )
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
        units_apart(want, have) <= 1
        for want, have in zip(numbers, found.groups(), strict=True)
    )


def units_apart(*numbers: str) -> int:
    """How far two decimals differ, in units of the last place: one may omit a final zero."""
    places = max(len(number.partition(".")[2]) for number in numbers)
    one, other = (round(float(number) * 10**places) for number in numbers)
    return abs(one - other)


# Pages


def parts(block: Block) -> list[tuple[str, str | None]]:
    """What runs one after another in a block, with what the page says that it prints."""
    one = [(block.text, block.output)]
    return [*commands(block.text)] if block.language == "console" else one


def printed(
    block: Block, namespace: dict[str, Any], path: str, folder: Path
) -> list[Any]:
    """Exit code and output of the parts of a block."""
    if block.language == "python":
        return [(0, run_python(block, namespace, path))]
    if block.language == "console":
        return outputs([text for text, _ in parts(block)], folder)
    pipes = "set -o pipefail\n" * (block.output is None)
    return outputs([f"(set -eu\n{pipes}{block.text})\n"], folder)


def run_block(block: Block, namespace: dict[str, Any], path: str, folder: Path) -> str:
    """Run a block of a page; returns what went wrong, or nothing."""
    wanted, found = parts(block), printed(block, namespace, path, folder)
    if len(found) != len(wanted):
        return f"{len(wanted)} commands, of which {len(found)} came to an end"
    same = eq if block.language == "python" else matches
    for i, ((text, expected), (code, got)) in enumerate(
        zip(wanted, found, strict=True)
    ):
        if code and [x for x, _ in wanted[i + 1 : i + 2]] != ["echo $?\n"]:
            return f"{text}exit code {code}, and no `$ echo $?` that says so; it printed\n{got}"
        if expected is not None and not same(expected, got):
            lines = unified_diff(
                expected.splitlines(),
                got.splitlines(),
                "the page",
                "the program",
                lineterm="",
            )
            return text + "\n".join(lines)
    return ""


def problems(page: Path, blocks: list[Block]) -> str:
    """Run blocks of a page in their order, in one folder; returns what went wrong, or nothing."""
    namespace: dict[str, Any] = {}
    with reader() as folder:
        found = [(x.line, run_block(x, namespace, str(page), folder)) for x in blocks]
    return "\n\n".join(
        f"{page}:{line}: {wrong}\nIf the program is right: python tests/examples.py {page}"
        for line, wrong in found
        if wrong
    )


def page_examples(document: Document) -> Iterable[Region]:
    """One region for all blocks of a page that run."""
    blocks = blocks_to_run(Path(document.path))
    if blocks:
        yield Region(
            0, len(document.text), blocks, lambda x: problems(Path(x.path), x.parsed)
        )


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


def fenced(block: Block, texts: list[str | None]) -> str:
    """A block with what it prints, as it stands on its page."""
    if block.language == "console":
        text = "".join(
            f"$ {x}{y}" for (x, _), y in zip(parts(block), texts, strict=True)
        )
        return f"```console\n{text}```"
    output = "" if block.output is None else f"\n```output\n{texts[0]}```"
    return f"```{block.language}\n{block.text}```{output}"


def updated(expected: str | None, got: str) -> str:
    """What is printed now; lines that still match stay."""
    old, now = (expected or "").splitlines(), got.splitlines()
    if len(old) == len(now):
        now = [a if matches(a, b) else b for a, b in zip(old, now, strict=True)]
    return (
        expected
        if expected and matches(expected, got)
        else "".join(f"{x}\n" for x in now)
    )


def refresh(page: Path) -> None:
    """Write what the blocks of a page print now; a page may be its own input."""
    for _ in range(ROUNDS):
        new = text = page.read_text("utf-8")
        namespace: dict[str, Any] = {}
        with reader() as folder:
            for block in blocks_to_run(page):
                old, now = parts(block), printed(block, namespace, str(page), folder)
                texts = [updated(x, y) for (_, x), (_, y) in zip(old, now, strict=True)]
                new = new.replace(
                    fenced(block, [x for _, x in old]), fenced(block, [*texts]), 1
                )
            for drawn in folder.glob("*.svg"):
                if (beside := page.parent / drawn.name).exists():
                    beside.write_text(drawn.read_text("utf-8"), "utf-8")
        if new == text:
            return
        page.write_text(new, "utf-8")
    raise SystemExit(f"{page}: its output changes its own input; move a paragraph")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh(Path(name).resolve())
