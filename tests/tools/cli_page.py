"""The reference of the commands, written from the program: `python tests/tools/cli_page.py`.

Between two comments of docs/reference/cli.md is what the program says: a list of the commands, and
a section for each, with its options. The rest is written by hand.
"""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

from regions import fill

from refimpl.cli.main import COMMANDS, loaded

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "cli.md"


def commands() -> dict[str, Any]:
    """The program's commands by name, those of a group as `case make`."""
    commands: dict[str, Any] = {}
    for name in (name for panel in COMMANDS.values() for name in panel):
        command = loaded(name)
        inner = getattr(command, "commands", {})
        commands |= {f"{name} {word}": one for word, one in inner.items()} or {name: command}
    return commands


def shown(text: str) -> str:
    """A text of --help as it is shown, on a page."""
    return re.sub(r"(?<![^\s(])(--?[a-z][\w-]*)", r"`\1`", text.replace("\\[", "[")).replace(
        "*", r"\*"
    )


def value(parameter: Any) -> str:
    """The value of an option: its placeholder, or the words to choose from."""
    return parameter.metavar or " | ".join(getattr(parameter.type, "choices", ()))


def entry(parameter: Any) -> str:
    """One argument or option: its names and value, its meaning and default."""
    default, argument = parameter.default, parameter.param_type_name == "argument"
    simple = isinstance(default, str | int | float) and not isinstance(default, bool)
    names = [parameter.metavar or parameter.name.upper()] if argument else parameter.opts
    term = ", ".join(f"`{name}`" for name in names)
    term += f" `{value(parameter)}`" if value(parameter) and not argument else ""
    notes = ("Required.",) if parameter.required and not argument else ()
    notes += (f"Default: `{default}`.",) if simple and "Default:" not in parameter.help else ()
    return f"{term}\n: {' '.join((shown(parameter.help), *notes))}\n"


def section(name: str, command: Any) -> str:
    """What a command does, its examples, and all arguments and options, by their panels."""
    examples = (command.epilog or "").removeprefix("Examples:").split("\n\n")
    lines = "\n".join(line.strip() for line in examples if line.strip())
    parts = [f"## refimpl {name}", shown(command.help), f"```text\n{lines}\n```" if lines else ""]
    listed = [x for x in command.params if x.name != "help"]
    panels = list(dict.fromkeys(x.rich_help_panel for x in listed))
    ordered = sorted(listed, key=lambda x: panels.index(x.rich_help_panel))
    for panel, group in groupby(ordered, key=lambda x: x.rich_help_panel):
        parts += [f"**{panel or 'Options'}**", "\n".join(map(entry, group)).rstrip()]
    return "\n\n".join(part for part in parts if part)


def index() -> str:
    """The commands, each with its sentence."""
    rows = ["| command | does |", "|---|---|"]
    for name, command in commands().items():
        sentence = command.help.partition("\n\n")[0].replace("\n", " ")
        rows.append(f"| [`{name}`](#refimpl-{name.replace(' ', '-')}) | {shown(sentence)} |")
    return "\n".join(rows)


def texts() -> dict[str, str]:
    """The parts of the page that the program writes."""
    sections = "\n\n".join(section(*item) for item in commands().items())
    return {"commands": f"\n\n{index()}\n\n", "options": f"\n\n{sections}\n\n"}


if __name__ == "__main__":
    fill(PAGE, texts())
