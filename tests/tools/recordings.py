"""Record the program in tmux: `PYTHONPATH=tests python tests/tools/recordings.py`.

It writes docs/how-to/terminal-*.txt.
Each command is typed into a shell of 80 and of 60 columns, and the screen is read as tmux shows it.
The script ends with an error if tmux wrapped a row, or if a word is not one of the wide screen's.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import FIXTURES

from refimpl.storage.partial_results import holds_results

PAGES = FIXTURES.parent / "docs/how-to"
WIDTHS, WIDE, ROWS, SECONDS = (80, 60), 200, 100, 300
PART = "long.json.part"
LONG = "refimpl score fixtures/llama --draws 150 -o long.json"
STEPS = {
    "First run": ["refimpl score fixtures/llama -o scores.json"],
    "Prune and measure": ["refimpl prune fixtures/llama -o out --sparsity 50% --measure"],
    "Compare": [
        "refimpl prune fixtures/llama -o plain --sparsity 50% --measure --correct none",
        "refimpl compare out plain scores.json",
    ],
    "An error": ["refimpl prune fixtures/llama -o new --sparsity 50% --method Wand"],
    "Stop and go on": [LONG, f"{LONG} --resume"],
}


class Screen:
    """A shell in tmux, in a scratch folder with the fixtures and a program `refimpl`."""

    def __init__(self, folder: Path, columns: int) -> None:
        self._folder, self._name = folder, f"refimpl-{os.getpid()}-{columns}"
        (folder / "fixtures").symlink_to(FIXTURES)
        program = folder / "bin" / "refimpl"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m refimpl "$@"\n')
        program.chmod(0o755)
        settings = {
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(FIXTURES.parent),
            "PS1": "$ ",
            "PROMPT_COMMAND": f"tmux -L {self._name} wait-for -S ready",
        }
        words = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
        shell = f"cd {shlex.quote(str(folder))}; exec env {' '.join(words)} bash --norc"
        size = ("-x", str(columns), "-y", str(ROWS))
        self._tmux("-f", "/dev/null", "new-session", "-d", "-s", "main", *size, shell)
        self._ready()

    def typed(self, command: str) -> list[str]:
        """The screen after a command; Ctrl-C is pressed when a run has partial results."""
        self._tmux("send-keys", "-R", "-t", "main")
        self._tmux("clear-history", "-t", "main")
        self._tmux("send-keys", "-t", "main", "-l", command)
        self._tmux("send-keys", "-t", "main", "Enter")
        if command == LONG:
            until = time.monotonic() + SECONDS
            while not holds_results(self._folder / PART) and time.monotonic() < until:
                time.sleep(0.05)
            self._tmux("send-keys", "-t", "main", "C-c")
        self._ready()
        shown, joined = (self._screen(*options) for options in ((), ("-J",)))
        typed = {line for line in joined if command in line}
        if wrapped := [line for line in joined if line not in shown and line not in typed]:
            raise SystemExit(f"wrapped: {wrapped[0]}")
        columns = int(self._name.rpartition("-")[2])
        rows = -(-len(command) // columns)  # of the typed command, whose prompt was cleared
        return [f"$ {command}", *shown[rows:]]

    def close(self) -> None:
        """End the shell."""
        self._tmux("kill-server")

    def _ready(self) -> None:
        """Wait for the prompt."""
        self._tmux("wait-for", "ready")

    def _screen(self, *options: str) -> list[str]:
        """The rows of the screen, without the last prompt."""
        text = self._tmux("capture-pane", "-p", "-t", "main", *options)
        rows = [row.rstrip() for row in text.rstrip().split("\n")]
        return rows[:-1] if rows[-1] == "$" else rows

    def _tmux(self, *words: str) -> str:
        """Run tmux on a server of its own."""
        done = subprocess.run(
            ["tmux", "-L", self._name, *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=SECONDS,
        )
        return done.stdout


def recorded(columns: int) -> dict[str, list[str]]:
    """The screens of every step."""
    with tempfile.TemporaryDirectory() as folder:
        screen = Screen(Path(folder), columns)
        try:
            return {
                step: [row for command in commands for row in (*screen.typed(command), "")]
                for step, commands in STEPS.items()
            }
        finally:
            screen.close()


def words_of(screens: dict[str, list[str]]) -> set[str]:
    """Its words, without numbers, which differ from run to run."""
    return set(re.findall(r"[A-Za-z][A-Za-z_-]+", "\n".join(map("\n".join, screens.values()))))


if __name__ == "__main__":
    known = words_of(recorded(WIDE))
    for columns in WIDTHS:
        screens = recorded(columns)
        if broken := words_of(screens) - known:
            raise SystemExit(f"{columns} columns: words that the wide screen lacks: {broken}")
        longest = max(len(row) for rows in screens.values() for row in rows)
        print(f"{columns} columns: no wrapped row, no broken word; the longest has {longest}")
        for step, rows in screens.items():
            name = f"terminal-{step.lower().replace(' ', '-')}-{columns}.txt"
            (PAGES / name).write_text("\n".join(rows).rstrip() + "\n", "utf-8")
