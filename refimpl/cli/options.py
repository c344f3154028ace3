"""What options are made of, and the files that commands read."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from refimpl.allocation.request import BASES, Request
from refimpl.errors import RefimplError
from refimpl.model.model import Model
from refimpl.storage.partial_results import partial_results_path

ALLOCATION = "Allocation"  # heading in --help
READ_BESIDE = (  # files beside the weights that are read, too
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def option(help: str, metavar: str | None = None, panel: str | None = ALLOCATION) -> Any:
    """An option under a heading of --help; whether its file can be read is seen when it is."""
    return typer.Option(help=help, metavar=metavar, rich_help_panel=panel, readable=False)


ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        readable=False,
        help="A .safetensors file, an index of shards, or a folder that holds either.",
    ),
]
Config = Annotated[
    Path | None,
    option("config.json, if not beside the weights or in them.", "FILE", None),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, the same that -o writes, in place of the table."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        readable=False,
        help="Write the JSON to a file as well, whole or not at all; an old one is replaced.",
    ),
]


def checked_part(output: Path | None, resume: bool) -> Path | None:
    """Where what was found so far is kept; refuse to take it up where it is nowhere.

    Args:
        output: Where the result goes, or None.
        resume: Whether --resume was given.

    Returns:
        A file beside the output, or None.

    Raises:
        RefimplError: --resume without -o.
    """
    if resume and output is None:
        raise RefimplError("--resume without -o", "-o beside it", "add -o, or leave --resume away")
    return None if output is None else partial_results_path(output)


def base_file(wanted: Request) -> Path | None:
    """The file that a custom base is read from."""
    return None if wanted.base in BASES else Path(wanted.base)


def refuse(context: typer.Context, names: Iterable[str], why: str, wanted: str) -> None:
    """Refuse options that were given though another one leaves them nothing to say.

    Args:
        context: Of the command.
        names: Parameters that must have been left at their defaults.
        why: What they do not go with.
        wanted: What is expected instead.

    Raises:
        RefimplError: One of them was given.
    """
    for name in names:
        where = context.get_parameter_source(name)
        if where is not None and where.name != "DEFAULT":
            given = f"--{name.replace('_', '-')}"
            raise RefimplError(f"{given} with {why}", wanted, f"leave {given} away")


def model_files(model: Model) -> dict[str, Path | None]:
    """The files that a model is read from, by what to call them."""
    beside = [model.folder / name for name in READ_BESIDE]
    paths = [model.path, *(file.path for file in model.files), *beside]
    return {f"the model's {path.name}": path for path in paths}
