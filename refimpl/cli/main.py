"""The program: its commands, and how it reports errors.

What imports NumPy is imported in functions, so that the list of commands appears at once.
"""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from refimpl.errors import Interrupted, RefimplError
from refimpl.version import __version__

# What typer raises for a command line it cannot read; its parent has no public name.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

COMPLETION = {"--show-completion", "--install-completion"}  # typer's options, and its shells
COMPLETING = "_REFIMPL_COMPLETE"  # set by a shell that asks for the words that may follow
CASES = "Cases for `refimpl check`: list, show and make them."
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")

INTERNAL = 70  # exit code of a failure that is not the input's: EX_SOFTWARE of sysexits.h

COMMANDS = {  # by heading in --help: where each command is, and two examples of it
    "Measure": {
        "score": (
            "score:command",
            "refimpl score MODEL -o scores.json",
            "refimpl score MODEL --text FILE --correct divergence",
        ),
        "eval": (
            "eval:command",
            "refimpl eval MODEL --text FILE",
            "refimpl eval MODEL --choices questions.jsonl -o evaluation.json",
        ),
        "explain": (
            "explain:command",
            "refimpl explain MODEL --block 3",
            "refimpl explain MODEL --text FILE",
        ),
    },
    "Prune": {
        "prune": (
            "prune:command",
            "refimpl prune MODEL -o OUT --sparsity 0.5 --measure",
            "refimpl prune MODEL -o OUT --nm 2:4 --method sparsegpt --text FILE",
        ),
        "allocate": (
            "score:allocate_command",
            "refimpl allocate scores.json --base owl --sparsity 0.6 -o allocation.json",
            "refimpl allocate scores.json --correct none",
        ),
    },
    "Look": {
        "compare": (
            "report:compare_command",
            "refimpl compare OUT1 OUT2 evaluation.json",
            "refimpl compare OUT1 OUT2 --csv",
        ),
        "report": (
            "report:command",
            "refimpl report scores.json OUT evaluation.json -o report.html",
            "refimpl report scores.json --figures figures",
        ),
        "inspect": (
            "prune:inspect_command",
            "refimpl inspect OUT",
            "refimpl inspect OUT -o inspection.json",
        ),
    },
    "Interchange": {
        "check": (
            "oracle:check_command",
            "refimpl check CASE actual.safetensors",
            "refimpl check CASE actual.safetensors --junit-xml results.xml",
        ),
        "export": (
            "export:command",
            "refimpl export MODEL -o model.onnx",
            "refimpl export MODEL -o model.onnx --experiment",
        ),
        "validate": (
            "validate:command",
            "refimpl validate MODEL --graph model.onnx",
            "refimpl validate MODEL --graph model.onnx --against onnx-reference",
        ),
    },
}


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


def options(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "-V",
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the version.",
            metavar="",
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Show no progress.", metavar="")
    ] = False,
) -> None:
    """Print the help if there is no command."""
    from refimpl.cli import terminal

    terminal.quiet = quiet
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def program(name: str | None = None) -> typer.Typer:
    """The program with one of its commands, or with all: a command takes time to import."""
    from refimpl.cli import options as opt

    app = _without_commands()
    known = any(name in commands for commands in COMMANDS.values())
    for panel, commands in COMMANDS.items():
        for each, (place, *examples) in commands.items():
            if known and each != name:
                continue
            module, _, function = place.partition(":")
            command = getattr(import_module(f"refimpl.cli.{module}"), function)
            app.command(
                each,
                help=opt.prose(str(command.__doc__)),
                epilog=opt.examples(*examples),
                rich_help_panel=panel,
            )(command)
    if not known:
        cases = import_module("refimpl.cli.oracle").app
        app.add_typer(cases, name="case", help=CASES, rich_help_panel="Interchange")
    return app


def overview() -> typer.Typer:
    """The program as its own --help shows it: commands that do nothing, and are not imported."""
    app = _without_commands()
    for panel, commands in COMMANDS.items():
        for each, (place, *_) in commands.items():
            app.command(each, help=_first_sentences(place), rich_help_panel=panel)(_nothing)
    app.command("case", help=CASES, rich_help_panel="Interchange")(_nothing)
    return app


def _without_commands() -> typer.Typer:
    app = typer.Typer(
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Perturbation-absorption scores, layer-wise sparsity, pruning and evaluation, in "
        "NumPy.",
        epilog="refimpl help COMMAND is refimpl COMMAND --help.",
    )
    app.callback(invoke_without_command=True)(options)
    return app


def _nothing() -> None:
    """Stand in for a command."""


def _first_sentences(place: str) -> str:
    """The first paragraph of a command's docstring, read from its module."""
    module, _, function = place.partition(":")
    source = Path(__file__).with_name(f"{module}.py").read_text("utf-8")
    found = re.search(rf'^def {function}\(.*?^    """(.+?)("""|\n\n)', source, re.M | re.S)
    return " ".join(found[1].split()) if found else ""


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
        words = sys.argv[1:]
        if words[:1] == ["help"]:
            words = [*words[1:], "--help"]
        named = next((word for word in words if not word.startswith("-")), None)
        if COMPLETION.intersection(words):
            _require_known_shell()
        if named is None and COMPLETING not in os.environ:
            sys.exit(overview()(words, prog_name="refimpl", standalone_mode=False))
        from refimpl.model.floating_point import loud

        with loud("float64"):  # of allocations; scoring names its own precision
            sys.exit(program(named)(words, prog_name="refimpl", standalone_mode=False))
    except RefimplError as error:
        failure = _with_nearest_name(error)
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
    except (Interrupted, KeyboardInterrupt, typer.Abort) as stopped:
        said = stopped if isinstance(stopped, Interrupted) else Interrupted("nothing was written")
        _complain(str(said))
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
    _complain(f"error: {failure}")
    try:
        sys.stdout.flush()
    except OSError:  # the interpreter would try again, and fail, at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _complain(text: str) -> None:
    from refimpl.cli import terminal

    terminal.complain(text)


def _require_known_shell() -> None:
    """Refuse to complete words for a shell that typer does not know; it would exit with 1."""
    from shellingham import ShellDetectionFailure, detect_shell

    try:
        shell = detect_shell()[0]
    except ShellDetectionFailure:
        shell = "an unknown shell"
    if shell not in SHELLS:
        raise RefimplError(
            f"no completion for {shell}",
            ", ".join(SHELLS),
            "run the same command in one of these",
        )


def _usage(error: Any) -> RefimplError:
    """The error of a command line that cannot be parsed."""
    named = [word for word in sys.argv[1:] if any(word in names for names in COMMANDS.values())]
    program = " ".join(["refimpl", *named[:1]])
    usage = f"{program} [OPTIONS] {'' if named else 'COMMAND '}[ARGS]..."
    if error.ctx is not None:
        program, usage = error.ctx.command_path, error.ctx.get_usage().split(maxsplit=1)[1]
    problem = error.format_message().replace("Value error, ", "")
    return RefimplError(problem, usage, _corrected(error, problem) or f"see {program} --help")


def _with_nearest_name(error: RefimplError) -> RefimplError:
    """The error; if a base or a file of a similar name exists, its next step is that command."""
    from refimpl.bases.base import bases
    from refimpl.pruners.method import methods

    words = sys.argv[1:]
    if record := re.match("(base|method|probe-pruner) '([^']*)'", error.problem):
        known = bases() if record[1] == "base" else methods()
        right = get_close_matches(record[2].lower(), known, 1)
        command = _command(_replaced(record[2], right, (f"--{record[1]}",)) if right else [])
        return RefimplError(error.problem, error.expected, command or error.remedy)
    for at, word in enumerate(words):
        names: list[str] = []
        if re.match(rf"{re.escape(path := str(Path(word)))}: .*no such file", error.problem, re.I):
            folder, slash, _ = path.rpartition("/")
            with suppress(OSError):
                names = [f"{folder}{slash}{name}" for name in os.listdir(folder or slash or ".")]
        if nearest := get_close_matches(word, names, 1):
            command = shlex.join(["refimpl", *words[:at], *nearest, *words[at + 1 :]])
            return RefimplError(error.problem, error.expected, command)
    return error


def _corrected(error: Any, problem: str) -> str | None:
    """The command line with what is missing, or the nearest valid word if it can be parsed then."""
    from refimpl.cli import terminal

    parameter: Any = getattr(error, "param", None)
    names: Sequence[str] = ()
    if problem.startswith("Missing ") and parameter is not None:
        named = parameter.opts[:1] if parameter.param_type_name == "option" else []
        return terminal.command_line(*named, parameter.metavar or str(parameter.name).upper())
    if nearest := getattr(error, "possibilities", None):  # of an option, the closest first
        wrong = error.option_name
    elif found := re.fullmatch(r"Option '(.*)' requires an argument\.", problem):
        return _command(_replaced(found[1], [found[1], "VALUE"]))
    elif found := re.search(r"'([^']*)' is not one of (.*)\.", problem):
        wrong, names = found[1], parameter.opts
        nearest = get_close_matches(wrong.lower(), re.findall("'(.*?)'", found[2]), 1)
    elif found := re.search(r"No such command '(.*)'\. Did you mean '(.*?)'", problem):
        return _command(_replaced(found[1], [found[2]]))
    words = _replaced(wrong, nearest[:1], names) if nearest else []
    return _command(words) if words and _is_parsed(error.ctx, words) else None


def _command(words: Sequence[str]) -> str | None:
    """The program with these words, as a shell reads it."""
    return shlex.join(["refimpl", *words]) if words else None


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


def _replaced(wrong: str, right: Sequence[str], names: Sequence[str] = ()) -> list[str]:
    """The command line with other words for a wrong one, which is a value of an option of names."""
    words = sys.argv[1:]
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if word == wrong and (not names or words[at - 1] in names):
            new = [*right]
        elif equals and (option == wrong or (option in names and value == wrong)):
            new = [f"{right[0]}={value}" if option == wrong else f"{option}={right[0]}"]
        else:
            continue
        return [*words[:at], *new, *words[at + 1 :]]
    return []
