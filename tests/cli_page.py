"""The tables of docs/reference/cli.md, written from the program: `python tests/cli_page.py`."""

import re
from pathlib import Path
from typing import Any, get_args

import typer

from refimpl.cli.main import app

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
TABLE = re.compile(r"(?<=<!-- options of )([\w ]+?)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def commands() -> dict[str, Any]:
    """The program's commands by name, those of a group as `case make`."""
    program: Any = typer.main.get_command(app)
    commands: dict[str, Any] = {}
    for name, command in program.commands.items():
        inner = getattr(command, "commands", {})
        commands |= {f"{name} {word}": one for word, one in inner.items()} or {name: command}
    return commands


def value(parameter: Any) -> str:
    """The value of an option: its placeholder, or the words to choose from."""
    words = get_args(getattr(getattr(parameter, "type_descriptor", None), "annotation", None))
    chosen = parameter.metavar or " or ".join(word for word in words if isinstance(word, str))
    return "" if parameter.param_type_name == "argument" else chosen


def shown(text: str) -> str:
    """A text of --help as it is shown."""
    return text.replace("\\[", "[")


def row(parameter: Any) -> str:
    """One argument or option: its names, value, default and meaning."""
    default = parameter.default
    simple = isinstance(default, str | int | float) and not isinstance(default, bool)
    argument = parameter.param_type_name == "argument"
    names = [parameter.metavar or parameter.name.upper()] if argument else parameter.opts
    cells = (
        ", ".join(f"`{name}`" for name in names),
        value(parameter),
        "required" if parameter.required else default if simple else "",
        shown(parameter.help),
    )
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells).strip() + " |"


def table(command: Any) -> str:
    """All arguments and options of a command."""
    rows = [row(parameter) for parameter in command.params if parameter.name != "help"]
    return "\n".join(
        [
            f"{shown(command.help)}\n",
            "| option | value | default | meaning |",
            "|---|---|---|---|",
            *rows,
        ]
    )


def filled(page: str) -> str:
    """The page with the tables as the program has them now."""
    by_name = commands()
    return TABLE.sub(lambda part: f"{part[1]}{part[2]}\n{table(by_name[part[1]])}\n\n", page)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
