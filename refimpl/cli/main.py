"""The program: its commands, and how it reports errors.

What imports NumPy is imported in functions, so that the list of commands appears at once.
"""

import ctypes
import os
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from refimpl.errors import Interrupted, RefimplError
from refimpl.version import __version__

# What typer raises for a command line it cannot read; its parent has no public name.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]
INTERNAL = (
    70  # exit code of a failure that is not the input's: EX_SOFTWARE of sysexits.h
)

# By heading in --help: where each command is, what it does, and two examples of it.
COMMANDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "Measure": {
        "score": (
            "score:score_command",
            "Measure how later blocks absorb or amplify a block's damage, and allocate sparsity.",
            ("MODEL -o scores.json", "MODEL --text FILE --correct divergence"),
        ),
        "eval": (
            "evaluation:eval_command",
            "Measure perplexity and bits per byte on a text.",
            ("MODEL --text FILE", "MODEL --text FILE --windows 20 -o evaluation.json"),
        ),
        "explain": (
            "score:explain_command",
            "Show the algorithm as it runs on this model: each step's formula, shapes and numbers.",
            ("MODEL --block 3", "MODEL --text FILE"),
        ),
    },
    "Prune": {
        "prune": (
            "prune:prune_command",
            "Prune a model to a sparsity, by an allocation, or to a pattern N:M.",
            ("MODEL -o OUT --sparsity 0.5", "MODEL -o OUT --nm 2:4 --text FILE"),
        ),
        "allocate": (
            "score:allocate_command",
            "Make another allocation from scores, without running the model again.",
            ("scores.json --base owl -o allocation.json", "scores.json --correct none"),
        ),
    },
    "Look": {
        "bench": (
            "evaluation:bench_command",
            "Compare allocations in one table: score, prune and evaluate, by sparsity and seed.",
            (
                "MODEL --bases uniform,owl -o FOLDER",
                "MODEL --sparsity 0.6 --seeds 3 -o FOLDER",
            ),
        ),
        "plot": (
            "evaluation:plot_command",
            "Draw scores, evaluations or a comparison: SVG, PNG, PDF, or a page of HTML.",
            ("scores.json -o scores.svg", "scores.json evaluation.json -o report.html"),
        ),
        "inspect": (
            "prune:inspect_command",
            "Print the sparsity of every block and linear, dtypes and sizes.",
            ("OUT", "OUT -o inspection.json"),
        ),
    },
    "Interchange": {
        "convert": (
            "formats:convert_command",
            "Write a GGUF, FP8 or MXFP4 model as a folder that the other commands read.",
            ("model.gguf -o FOLDER", "FP8_FOLDER -o FOLDER --dtype bfloat16"),
        ),
        "check": (
            "oracle:check_command",
            "Find the first step at which another implementation differs from a case or model.",
            ("CASE actual.safetensors", "CASE trace.npz --only forward"),
        ),
        "export": (
            "formats:export_command",
            "Write a model as an ONNX graph that other runtimes execute.",
            ("MODEL -o model.onnx", "MODEL -o trace.onnx --outputs trace"),
        ),
        "validate": (
            "formats:validate_command",
            "Compare every step of every block, and the logits, with another runtime.",
            ("MODEL", "MODEL --graph model.onnx"),
        ),
        "case": ("oracle:app", "Make cases for `refimpl check`.", ()),
        "vectors": (
            "oracle:vectors_command",
            "Write inputs and outputs of single kernels at boundary shapes, for `refimpl check`.",
            ("attention -o FOLDER", "all -o FOLDER"),
        ),
        "fuzz": (
            "oracle:fuzz_command",
            "Find the smallest configuration of a family on which another implementation fails.",
            (
                "--family llama -o FOLDER -- PROGRAM {case} {out}",
                "--family llama -o FOLDER --only logits -- PROGRAM {case} {out}",
            ),
        ),
    },
}


SAME_IN_EVAL = {
    "--seq-len": "--window",
    "--samples": "--windows",
}  # what `eval` calls them
GONE = {  # what earlier versions took, and what does it now
    **dict.fromkeys(
        ("generate", "--choices"), "load the folder in transformers, or in lm_eval"
    ),
    **dict.fromkeys(
        ("compare", "--measure"), "run refimpl bench, or refimpl eval on both models"
    ),
    **dict.fromkeys(("report", "--html"), "run refimpl plot FILE -o report.html"),
    **dict.fromkeys(("case list", "case show"), "read case.json in the case's folder"),
    "estimate": "run refimpl score or prune, whose bar shows the time left",
    "--budget": "omit it, and use fewer --samples",
    "--config": "put config.json beside the weights",
    "--correction-scale": "use another --strength",
    "--device": "omit it; on a GPU, run the graph yourself, and check what it writes",
    "--decode": "join the arrays of the prompt and of each decoded token, and check these",
    "help": "run refimpl --help, or refimpl COMMAND --help",
    "--imatrix": "use --text FILE",
    "--keep-models": "run refimpl prune",
    "--pruners": "use --pruner",
    "--sample-tokens": "use --seq-len",
    **dict.fromkeys(("--variant", "--probe"), "use --sink, --noise-norm or --pruner"),
    **dict.fromkeys(
        ("--baseline", "--junit-xml", "--plant"), "use pytest, with refimpl_case"
    ),
    **dict.fromkeys(
        (
            "--against",
            "--draws",
            "--dry-run",
            "--estimate",
            "--executor",
            "--experiment",
            "--quiet",
            "--install-completion",
            "--resolvable",
            "--runtime",
            "--show-completion",
            "--stepwise",
            "--verbose",
        ),
        "omit it",
    ),
}


class Commands(TyperGroup):
    """The program's commands, each of which is imported when it is called: that takes time."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that is called, instead of what stands for it in the list."""
        if (word := f"{ctx.command_path} {args[0]}".partition(" ")[2]) in GONE:
            raise removed(word)
        name, listed, rest = super().resolve_command(ctx, args)
        return name, loaded(str(name)) if listed and not ctx.parent else listed, rest


def loaded(name: str) -> Any:
    """A command with its options; its help is its line in the list, and its docstring."""
    location, summary, examples = next(x[name] for x in COMMANDS.values() if name in x)
    module, _, function = location.partition(":")
    found = getattr(import_module(f"refimpl.cli.{module}"), function)
    if isinstance(found, typer.Typer):
        found.info.help, found.info.cls = summary, Commands
        found.callback(invoke_without_command=True)(help_alone)
        return typer.main.get_command(found)
    from refimpl.cli import options as opt

    app = typer.Typer(add_completion=False)
    epilog = opt.examples(*(f"refimpl {name} {words}" for words in examples))
    app.command(name, help=opt.prose(summary, found.__doc__), epilog=epilog)(found)
    return typer.main.get_command(app)


def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("-V", "--version", help="Print the version.", metavar="")
    ] = False,
) -> None:
    """Print the version, or the help if there is no command."""
    if version:
        typer.echo(__version__)
        raise typer.Exit
    help_alone(context)


def help_alone(context: typer.Context) -> None:
    """Print the help if there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def program() -> typer.Typer:
    """The program."""
    app = typer.Typer(
        cls=Commands,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Perturbation-absorption scores, layer-wise sparsity, pruning and evaluation, in "
        "NumPy.",
    )
    app.callback(invoke_without_command=True)(options)
    for panel, commands in COMMANDS.items():
        for name, (_, summary, *_) in commands.items():
            app.command(name, help=summary, rich_help_panel=panel)(lambda: None)
    return app


def _keep_freed_memory() -> None:
    """Let one heap of glibc keep what threads free; only a process that is ours may set that.

    By default, freed arrays go back to the system, which clears their pages for the next ones.
    """
    with suppress(AttributeError, ValueError, OSError):  # Windows, macOS, musl
        if os.confstr("CS_GNU_LIBC_VERSION"):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: no free bytes go back to the system
            mallopt(
                -3, 32 << 20
            )  # M_MMAP_THRESHOLD: arrays from here on are outside the heap,
            mallopt(-4, 0)  # M_MMAP_MAX: but at most so many
            mallopt(-8, 1)  # M_ARENA_MAX: heaps


def main() -> None:
    """Run the program, and exit with one of the codes of docs/reference/cli.md."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if (
            getattr(sys, name) is None
        ):  # closed; its number must not go to a file of ours
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if (
        len(os.environ.get("COLUMNS", "")) > 4
    ):  # help would fill all columns with spaces
        os.environ["COLUMNS"] = "1000"
    _keep_freed_memory()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(
            errors="backslashreplace"
        )  # names of files may be any bytes
    failure: Exception
    code = 2
    try:
        sys.exit(program()(sys.argv[1:], prog_name="refimpl", standalone_mode=False))
    except RefimplError as error:
        failure = error
    except UsageError as error:
        failure = usage(error)
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
    except Interrupted as stopped:
        code, failure = 130, stopped
    except (KeyboardInterrupt, typer.Abort):
        code, failure = 130, Interrupted("nothing was written")
    except Exception as error:
        traceback.print_exc()
        code = INTERNAL
        failure = RefimplError(
            f"refimpl itself failed ({type(error).__name__}: {error}); the input may be fine",
            "a result, or a message about the input",
            f"report it, with the command and the lines above (refimpl {__version__})",
        )
    with suppress(OSError):
        print(failure if code == 130 else f"error: {failure}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the interpreter would try again, and fail, at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def usage(error: Any) -> RefimplError:
    """The error of a command line that cannot be parsed."""
    program, expected, step = "refimpl", "refimpl [OPTIONS] COMMAND [ARGS]...", ""
    word = getattr(error, "option_name", "")
    if word in GONE:
        return removed(word)
    if error.ctx is not None:
        program, expected = (
            error.ctx.command_path,
            error.ctx.get_usage().split(maxsplit=1)[1],
        )
        meant = SAME_IN_EVAL.get(word)
        step = (
            f"use {meant}; "
            if any(meant in x.opts for x in error.ctx.command.params)
            else ""
        )
    return RefimplError(error.format_message(), expected, f"{step}see {program} --help")


def removed(word: str) -> RefimplError:
    """The error of a command or an option that earlier versions had."""
    return RefimplError(f"{word} was removed", "what refimpl --help lists", GONE[word])
