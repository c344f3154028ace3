"""Every example in README.md, docs/ and the docstrings, as a test: what a reader types is run.

Each example runs by itself, in a folder where the top of the repository is in sight:

- a ```python block, in an empty namespace; after a line `<!-- goes on -->` the block before it on
  the page is run first; `>>>` lines are compared with what they print;
- the `>>>` lines of a docstring, in the namespace of its module;
- a ```console block: each `$` line in a shell, and what it prints compared with what follows it.
  `...` stands for anything, the last decimal may be off by one, and a command must succeed unless
  the next line is `$ echo $?`.

Run one page with `pytest tests/docs/test_examples.py docs/index.md`, and write what the console
blocks print now into the pages with `python tests/examples.py README.md docs/index.md`.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import chdir, contextmanager
from difflib import unified_diff
from doctest import ELLIPSIS, DocTest, DocTestParser, DocTestRunner
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import CodeBlockParser

ROOT = Path(__file__).parent.parent
SHIM = (
    "#!/bin/sh\n"
    f"exec '{sys.executable}' -W error -c 'import sys; sys.argv[0] = \"refimpl\"; "
    'from refimpl.cli.main import main; main()\' "$@"\n'
)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GOES_ON = "<!-- goes on -->\n"
PYTHON = re.compile(rf"^({GOES_ON})?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
END = "\x1e"  # printed after each command, with its exit code
ROUNDS = 5


@contextmanager
def repository() -> Iterator[Path]:
    """A temporary folder with links to what lies at the top of the repository."""
    with TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for entry in ROOT.iterdir():
            if not entry.name.startswith("."):
                (folder / entry.name).symlink_to(entry)
        yield folder


@contextmanager
def reader() -> Iterator[None]:
    """What an example in this process runs under: the repository in sight, loud arithmetic."""
    loud = np.errstate(over="raise", invalid="raise", divide="raise")
    with repository() as folder, chdir(folder), loud:
        yield


# Python


def run_session(source: str, namespace: dict[str, Any], path: str, line: int) -> str:
    """Run `>>>` lines; returns what went wrong, or nothing. `line` is that of the first one."""
    examples = DocTestParser().get_examples(source, path)
    start = line - 1 - examples[0].lineno
    out: list[str] = []
    with reader():
        DocTestRunner(optionflags=ELLIPSIS, verbose=False).run(
            DocTest(examples, namespace, "example", path, start, None), out=out.append
        )
    return "".join(out)


def run_python(example: Example) -> str:
    """Run a ```python block, after those that it goes on from."""
    source, first = example.parsed, example.line + example.parsed.line_offset + 1
    namespace = {"__name__": "__main__"}
    if source.startswith(">>>"):
        return run_session(source, namespace, example.path, first)
    with reader():
        for earlier in before(example.document.text[: example.start]):
            exec(compile(earlier, example.path, "exec"), namespace)
        exec(compile("\n" * (first - 1) + source, example.path, "exec"), namespace)
    return ""


def before(text: str) -> list[str]:
    """The blocks that the one after a text goes on from: itself may be run alone."""
    found: list[str] = []
    if text.endswith(GOES_ON):
        for goes_on, block in PYTHON.findall(text):
            found = [*found, block] if goes_on else [block]
    return found


def run_docstring(example: Example) -> str:
    """Run the `>>>` lines of one docstring on a copy of its module's namespace."""
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


def outputs(block: str) -> list[tuple[int, str]]:
    """Exit code and output (both streams) of every command of a console block."""
    script = "".join(
        f"(exit $code)\n{command}code=$?; printf '\\036%d\\n' $code\n"
        for command, _ in commands(block)
    )
    noisy = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
    quiet = {key: value for key, value in os.environ.items() if key not in noisy}
    with repository() as folder, TemporaryDirectory() as programs:
        shim = Path(programs, "refimpl")
        shim.write_text(SHIM)
        shim.chmod(0o755)
        quiet |= {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "COLUMNS": "100",
        }
        done = subprocess.run(
            ["bash", "-c", "code=0\n" + script],
            cwd=folder,
            env=quiet,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            timeout=300,
            check=False,
        )
    printed = re.findall(rf"([^{END}]*){END}(\d+)\n", done.stdout)
    return [(int(code), text) for text, code in printed]


def matches(expected: str, got: str) -> bool:
    """Whether output is as expected: `...` is anything, the last decimal may be off by one."""
    pattern, numbers = "", []
    for part in re.split(r"(\.\.\.|(?<![\d.])\d+\.\d+(?![\d.]))", expected):
        if part == "...":
            pattern += ".*?"
        elif re.fullmatch(r"\d+\.\d+", part):
            numbers.append(part)
            pattern += rf"(\d+\.\d{{{len(part) - part.index('.') - 1}}})"
        else:
            pattern += re.escape(part)
    found = re.fullmatch(pattern, got, re.DOTALL)
    return found is not None and all(
        abs(int(want.replace(".", "")) - int(have.replace(".", ""))) <= 1
        for want, have in zip(numbers, found.groups(), strict=True)
    )


def problem(block: str) -> str:
    """Run a console block; returns what is not as it says, or nothing."""
    wanted, found = commands(block), outputs(block)
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


def run_console(example: Example) -> str:
    """Run a ```console block."""
    found = problem(example.parsed)
    page = Path(example.path).relative_to(ROOT)
    return found and f"{found}\nIf the program is right: python tests/examples.py {page}"


# Pages

MARKDOWN = Sybil(
    parsers=[CodeBlockParser("python", run_python), CodeBlockParser("console", run_console)],
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


def refreshed(block: str) -> str:
    """A console block with what its commands print now; lines that still match stay."""
    new = ""
    for (command, expected), (_, got) in zip(commands(block), outputs(block), strict=True):
        old, now = expected.splitlines(), got.splitlines()
        if len(old) == len(now):
            now = [a if matches(a, b) else b for a, b in zip(old, now, strict=True)]
        kept = expected if matches(expected, got) else "".join(f"{line}\n" for line in now)
        new += f"$ {command}{kept}"
    return new


def refresh(page: Path) -> None:
    """Write what the console blocks of a page print now; a page may be its own input."""
    for _ in range(ROUNDS):
        text = page.read_text("utf-8")
        new = CONSOLE.sub(lambda found: f"```console\n{refreshed(found[1])}```", text)
        if new == text:
            return
        page.write_text(new, "utf-8")
    raise SystemExit(f"{page}: its output changes its own input; move a paragraph")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh(Path(name))
