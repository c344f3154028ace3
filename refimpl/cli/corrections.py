"""What a mistyped command is told: the command as it should be, if that is clear."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from refimpl.errors import RefimplError

# What typer raises for a command line it cannot read; its parent has no public name.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
SIMILAR = 0.8  # of two words: a letter is wrong, missing, twice or in another place


def usage(error: Any) -> RefimplError:
    """The error of a command line that cannot be parsed."""
    problem = error.format_message().replace("Value error, ", "")
    program, expected = "refimpl", "refimpl [OPTIONS] COMMAND [ARGS]..."
    if error.ctx is not None:
        program, expected = error.ctx.command_path, error.ctx.get_usage().split(maxsplit=1)[1]
    return RefimplError(problem, expected, _corrected(error, problem) or f"see {program} --help")


def with_nearest_name(error: RefimplError) -> RefimplError:
    """The error; if a record or a file of a similar name exists, its next step is that command."""
    command = None
    if record := re.match(r"(base|pruner|probe-pruner) '([^']*)'", error.problem):
        names = re.findall(r"[\w-]+", error.expected.partition(", or ")[0])
        options = ("--base", "--allocation", "--pruner", "--probe")
        command = _replaced(record[2], _nearest(record[2], names), options)
    for word in sys.argv[1:]:
        path = str(Path(word))
        if re.match(rf"{re.escape(path)}: .*no such file", error.problem, re.I):
            folder, slash, _ = path.rpartition("/")
            with suppress(OSError):
                names = [f"{folder}{slash}{name}" for name in os.listdir(folder or slash or ".")]
                command = command or _replaced(word, _nearest(path, names))
    return RefimplError(error.problem, error.expected, command) if command else error


def _nearest(wrong: str, known: Sequence[str]) -> str | None:
    """The known word that a wrong one resembles."""
    close = (get_close_matches(word, known, 1, SIMILAR) for word in (wrong, wrong.lower()))
    return next((names[0] for names in close if names), None)


def _corrected(error: Any, problem: str) -> str | None:
    """The command line with what is missing, or with the nearest valid word."""
    from refimpl.cli.terminal import command_line

    parameter: Any = getattr(error, "param", None)
    if problem.startswith("Missing ") and parameter is not None:
        named = parameter.opts[:1] if parameter.param_type_name == "option" else []
        return command_line(*named, parameter.metavar or str(parameter.name).upper())
    if found := re.fullmatch(r"Option '(.*)' requires an argument\.", problem):
        return f"{command_line()} VALUE"
    if found := re.search(r"No such command '(.*)'\. Did you mean '(.*?)'", problem):
        return _replaced(found[1], found[2])
    if nearest := getattr(error, "possibilities", None):  # of an option, the closest first
        return _replaced(error.option_name, _nearest(error.option_name, nearest[:1]))
    if found := re.search(r"'([^']*)' is not one of (.*)\.", problem):
        known = re.findall("'(.*?)'", found[2])
        return _replaced(found[1], _nearest(found[1], known), parameter.opts)
    return None


def _replaced(wrong: str, right: str | None, options: Sequence[str] = ()) -> str | None:
    """The command line with the right word for a wrong one, which is a value of the options.

    The word may also be the VALUE of NAME=VALUE, or an option before its value.
    """
    if right is None:
        return None
    words = sys.argv[1:]
    for at, word in enumerate(words):
        head, equals, tail = word.rpartition("=")
        if tail == wrong and (not options or head in options or words[at - 1] in options):
            return shlex.join(["refimpl", *words[:at], head + equals + right, *words[at + 1 :]])
        if head == wrong and not options:
            return shlex.join(["refimpl", *words[:at], right + equals + tail, *words[at + 1 :]])
    return None
