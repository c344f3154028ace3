"""The program: its commands, and how errors leave it."""

import sys
from typing import Annotated

import typer

from refimpl.cli import allocate, score
from refimpl.errors import RefimplError
from refimpl.version import __version__

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Perturbation-absorption scores and layer-wise sparsity allocation, in NumPy.",
)
app.command("score")(score.command)
app.command("allocate")(allocate.command)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Run the program: 0 for success, 2 for input that cannot be used, 130 when interrupted."""
    try:
        app()
    except RefimplError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
