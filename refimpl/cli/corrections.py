"""What a mistyped command is told: the command as it should be, if that is clear."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from refimpl.errors import RefimplError

# What typer raises for a command line it cannot read; its parent has no public name.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def usage(error: Any) -> RefimplError:
    """The error of a command line that cannot be parsed."""
    problem = error.format_message().replace("Value error, ", "")
    program, expected = "refimpl", "refimpl [OPTIONS] COMMAND [ARGS]..."
    if error.ctx is not None:
        program, expected = error.ctx.command_path, error.ctx.get_usage().split(maxsplit=1)[1]
    remedy = _elsewhere(error) or _corrected(error, problem)
    return RefimplError(problem, expected, remedy or f"see {program} --help")


def with_nearest_name(error: RefimplError) -> RefimplError:
    """The error; if a record or a file of a similar name exists, its next step is that command."""
    words, command = sys.argv[1:], None
    if record := re.match(r"(base|pruner|probe-pruner) '([^']*)'", error.problem):
        options = ("--base", "--allocation", "--pruner", "--probe")
        command = _with(
            record[2], re.findall(r"[\w-]+", error.expected.partition(", or ")[0]), options
        )
    for word in words:
        names: list[str] = []
        if re.match(rf"{re.escape(path := str(Path(word)))}: .*no such file", error.problem, re.I):
            folder, slash, _ = path.rpartition("/")
            with suppress(OSError):
                names = [f"{folder}{slash}{name}" for name in os.listdir(folder or slash or ".")]
        command = command or _with(word, names)
    return RefimplError(error.problem, error.expected, command) if command else error


def _with(wrong: str, known: Sequence[str], options: Sequence[str] = ()) -> str | None:
    """The command line with the nearest known word for a wrong one."""
    nearest = get_close_matches(wrong, known, 1) or get_close_matches(wrong.lower(), known, 1)
    return _replaced(wrong, nearest[0], options) if nearest else None


def _elsewhere(error: Any) -> str | None:
    """The next step for an option of the experiment or the allocation that another command has."""
    from refimpl.allocation.request import Request
    from refimpl.arguments import spelled
    from refimpl.cli.main import loaded
    from refimpl.method.perturbation import Noise, Probes
    from refimpl.pruners.decision import PrunerOptions

    name = getattr(error, "option_name", "").removeprefix("--").replace("-", "_")
    owners = (Noise, Probes, Request, PrunerOptions)
    known = {x.metadata.get("name", x.name): x for owner in owners for x in fields(owner)}
    known["method"] = known["pruner"]
    if name not in known or error.ctx is None:
        return None
    new, command = f"{spelled(known[name])}VALUE", error.ctx.info_name
    option = new.split()[0]
    if option in (word for x in error.ctx.command.params for word in x.opts):
        return f"use {new}"
    measured = option in (word for x in loaded("score").params for word in x.opts)
    first = f"refimpl score MODEL {new}" if measured else f"refimpl allocate scores.json {new}"
    if command == "prune":
        return f"{first} -o FILE, then refimpl prune MODEL -o OUT --allocation FILE"
    return f"refimpl score MODEL -o scores.json, then {first}" if command == "score" else None


def _corrected(error: Any, problem: str) -> str | None:
    """The command line with what is missing, or the nearest valid word if it can be parsed then."""
    from refimpl.cli.terminal import command_line

    parameter: Any = getattr(error, "param", None)
    if problem.startswith("Missing ") and parameter is not None:
        named = parameter.opts[:1] if parameter.param_type_name == "option" else []
        return command_line(*named, parameter.metavar or str(parameter.name).upper())
    if found := re.fullmatch(r"Option '(.*)' requires an argument\.", problem):
        return f"{command_line()} VALUE"
    if found := re.search(r"No such command '(.*)'\. Did you mean '(.*?)'", problem):
        return _replaced(found[1], found[2])
    command = None
    if nearest := getattr(error, "possibilities", None):  # of an option, the closest first
        command = _with(error.option_name, nearest[:1])
    elif found := re.search(r"'([^']*)' is not one of (.*)\.", problem):
        command = _with(found[1], re.findall("'(.*?)'", found[2]), parameter.opts)
    return command if command and _is_parsed(error.ctx, shlex.split(command)) else None


def _is_parsed(context: Any, words: Sequence[str]) -> bool:
    """Whether the command of a context takes the words after its name; a help is not printed."""
    if context.info_name not in words or {"-h", "--help"} & {*words}:
        return False
    try:
        own = [*words[words.index(context.info_name) + 1 :]]
        context.command.make_context(context.info_name, own, parent=context.parent)
    except (UsageError, RefimplError):
        return False
    return True


def _replaced(wrong: str, right: str, options: Sequence[str] = ()) -> str | None:
    """The command line with another word for a wrong one, which is a value of one of the options.

    The word may also be the VALUE of NAME=VALUE, or an option before its value.
    """
    words = sys.argv[1:]
    for at, word in enumerate(words):
        head, equals, tail = word.rpartition("=")
        if tail == wrong and (not options or head in options or words[at - 1] in options):
            return shlex.join(["refimpl", *words[:at], head + equals + right, *words[at + 1 :]])
        if head == wrong and not options:
            return shlex.join(["refimpl", *words[:at], right + equals + tail, *words[at + 1 :]])
    return None
