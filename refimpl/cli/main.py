"""The program: its commands, and how it reports errors."""

import os
import sys
import traceback
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from refimpl.cli import (
    compare,
    eval,
    explain,
    export,
    oracle,
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

INTERNAL = 70  # exit code of a failure that is not the input's: EX_SOFTWARE of sysexits.h

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Perturbation-absorption scores, layer-wise sparsity, pruning and evaluation, in NumPy.",
)
app.command("score")(score.command)
app.command("allocate")(score.allocate_command)
app.command("prune")(prune.command)
app.command("inspect")(prune.inspect_command)
app.command("eval")(eval.command)
app.command("export")(export.command)
app.command("validate")(validate.command)
app.command("check")(oracle.check_command)
app.command("compare")(compare.command)
app.command("report")(report.command)
app.command("explain")(explain.command)
app.add_typer(oracle.app, name="case")


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
    """Print the help if there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the program: 0 for success, 2 for input that cannot be used, 130 when interrupted.

    `validate` and `check` exit with 1 if they find a disagreement; `check` exits with 3 if the
    result is inconclusive. An exception that nobody expected exits with 70, so that no command
    reports a failure of its own as a disagreement.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed; its number must not go to a file of ours
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    code = 2
    try:
        with loud("float64"):  # of allocations; scoring names its own precision
            sys.exit(app(prog_name="refimpl", standalone_mode=False))
    except RefimplError as error:
        failure = error
    except UsageError as error:
        failure = _usage(error)
    except MemoryError as error:
        failure = RefimplError(
            f"out of memory ({error})",
            "enough memory for the states, and for one block's weights per thread",
            "reduce --memory, --threads or --seq-len",
        )
    except OSError as error:
        failure = RefimplError(
            f"{error.filename or 'output'}: {error.strerror or error}",
            "files that can be read, and room on the disk for the output",
            "check the disk and the permissions",
        )
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        traceback.print_exc()
        code, failure = (
            INTERNAL,
            RefimplError(
                f"refimpl itself failed ({type(error).__name__}: {error}); the input may be fine",
                "a result, or a message about the input",
                f"report it, with the command and the lines above (refimpl {__version__})",
            ),
        )
    print(f"error: {failure}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would try again, and fail, at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _usage(error: Any) -> RefimplError:
    """The error of a command line that cannot be parsed."""
    program, usage = "refimpl", "refimpl [OPTIONS] COMMAND [ARGS]..."
    if error.ctx is not None:
        program, usage = error.ctx.command_path, error.ctx.get_usage().split(maxsplit=1)[1]
    problem = error.format_message().replace("Value error, ", "")
    return RefimplError(problem, usage, f"see {program} --help")
