"""The program: its commands, and how errors leave it."""

import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer

from refimpl.cli import (
    allocate,
    case,
    check,
    eval,
    explain,
    export,
    inspect,
    prune,
    report,
    score,
    validate,
)
from refimpl.errors import RefimplError
from refimpl.model.floating_point import loud
from refimpl.version import __version__

# What typer raises for a command line it cannot read; its parent has no public name.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Perturbation-absorption scores, layer-wise sparsity, pruning and evaluation, in NumPy.",
)
app.command("score")(score.command)
app.command("allocate")(allocate.command)
app.command("prune")(prune.command)
app.command("inspect")(inspect.command)
app.command("eval")(eval.command)
app.command("export")(export.command)
app.command("validate")(validate.command)
app.command("check")(check.command)
app.command("report")(report.command)
app.command("explain")(explain.command)
app.add_typer(case.app, name="case")


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the program: 0 for success, 2 for input that cannot be used, 130 when interrupted.

    `validate` and `check` leave with 1 where what they compared does not agree, and `check` with 3
    where that is open.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be anything
    try:
        with loud("float64"):  # of allocations; scoring names its own precision
            sys.exit(app(prog_name="refimpl", standalone_mode=False))
    except RefimplError as error:
        _fail(error)
    except UsageError as error:
        _fail(_usage(error))
    except MemoryError as error:
        _fail(
            RefimplError(
                f"out of memory ({error})",
                "room for the states, and the weights of a block, for every thread",
                "use a smaller --memory, fewer --threads, or a shorter --seq-len",
            )
        )
    except OSError as error:
        _fail(
            RefimplError(
                f"{error.filename or 'output'}: {error.strerror or error}",
                "files that can be read, and room for what is written",
                "check the disk, and the permissions",
            )
        )
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)


def _usage(error: Any) -> RefimplError:
    """A command line that cannot be read, in the form that all errors have."""
    program, usage = "refimpl", "refimpl [OPTIONS] COMMAND [ARGS]..."
    if error.ctx is not None:
        program, usage = error.ctx.command_path, error.ctx.get_usage().split(maxsplit=1)[1]
    problem = error.format_message().replace("Value error, ", "")
    return RefimplError(problem, usage, f"see {program} --help")


def _fail(error: RefimplError) -> NoReturn:
    """Say what was wrong, and leave."""
    print(f"error: {error}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # what could not be printed must not be tried again when the program ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(2)
