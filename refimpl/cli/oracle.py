"""`refimpl case`, `vectors` and `check`: whether another implementation agrees with refimpl."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.arguments import common_option, option, same_option
from refimpl.cli import groups
from refimpl.cli.options import (
    Group,
    OutputKind,
    argument,
    examples,
    output_option,
    with_groups,
)
from refimpl.cli.terminal import say
from refimpl.loading.samples import SAMPLES, SEQ_LEN, read_ids
from refimpl.loading.text import model_tokens
from refimpl.oracle.case_folders import FORWARD, case_or_model, family_model
from refimpl.oracle.check import EXIT
from refimpl.oracle.recipe import Recipe
from refimpl.show.table import fitting, joined
from refimpl.testing.fuzz import Fuzzing, fuzz

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class FolderOptions:
    """Where a case, or unit vectors, are written."""

    output: Path = output_option(..., "The new folder.", "FOLDER", OutputKind.FOLDER)


@app.command(
    "make",
    epilog=examples(
        "refimpl case make MODEL -o CASE --text FILE",
        "refimpl case make MODEL -o CASE --only 'blocks.*'",
    ),
)
@with_groups
def make(
    model: groups.ModelPath,
    *,
    to: Annotated[FolderOptions, Group("Output")],
    where: groups.Where,
    source: Annotated[groups.Source, groups.source_group(SAMPLES, SEQ_LEN)],
    recipe: Annotated[Recipe, Group("Recipe")],
) -> None:
    """Compute every step of the method on a model in float64, to check other implementations."""
    from refimpl.oracle.case import make_case  # not for --help

    opened = where.read(model if model.exists() else family_model(str(model)) or model)
    tokens = model_tokens(opened, **vars(source))
    case = make_case(opened, tokens, recipe, to.output)
    text = (
        f"{case.folder}: {len(case.expected):,} steps of {opened.name}, {tokens.source}"
    )
    say(joined(fitting(text)))


@with_groups
def vectors_command(
    kernel: Annotated[
        str, typer.Argument(metavar="KERNEL", help="The kernel's name, or all.")
    ],
    *,
    to: Annotated[FolderOptions, Group("Output")],
) -> None:
    """KERNEL.json says what each vector tests; KERNEL.safetensors has its inputs and outputs."""
    from refimpl.oracle.vectors import write_vectors  # not for --help

    say(joined(fitting(f"written: {write_vectors(kernel, to.output)}")))


@dataclass(frozen=True)
class CheckOptions:
    """What is checked, and how."""

    only: tuple[str, ...] = common_option(
        (),
        "Check these steps alone: a shell pattern such as 'blocks.*', or the word forward; may be "
        "repeated. All of them must be there. blocks.0.attn_heads is the input of o_proj in the "
        "forward of a model. Default: every step of the case.",
        "PATTERN",
    )
    names: Path | None = common_option(
        None,
        "A JSON file with the program's name of each step, or the word transformers for those of "
        "its modules. Default: recognised. Other steps are not checked.",
        "FILE",
    )
    ids: Path | None = option(
        None,
        "Token ids of the candidate (.npy), if its file lacks them.",
        "FILE",
        name="tokens",
    )
    dtype: Literal["bfloat16", "float16", "float32", "float64", "tf32"] | None = (
        common_option(
            None,
            "Precision of the candidate. Default: as its file states, or its coarsest tensor.",
        )
    )
    download: bool = same_option(groups.ModelOptions, "download")


@with_groups
def check_command(
    case: Annotated[
        Path,
        argument(
            "MODEL_OR_CASE",
            "The folder or name of a case (core cases: llama, opt, phi3), or a folder of refimpl "
            "vectors. Or a model, or a family, such as mixtral (a tiny random model): its forward "
            "is computed on your token ids.",
            case_or_model,
        ),
    ],
    actual: Annotated[
        Path,
        argument(
            "ACTUAL",
            "The candidate's results, safetensors or .npz: arrays named after the steps, or the "
            "outputs of transformers' modules, named after these.",
        ),
    ],
    *,
    how: Annotated[CheckOptions, Group("Candidate")],
    to: groups.Outputs,
) -> None:
    """Exits with 0 if all steps agree, with 1 if one diverges, and with 2 if an input is unusable.

    Exits with 3 if nothing diverges, but a step is missing or follows from a choice that was not
    written, or if no step of a kind is resolved by the dtype.
    """
    from refimpl.oracle.candidates import checked_file
    from refimpl.show.oracle import report_document, report_table

    only = tuple(
        x for word in how.only for x in (FORWARD if word == "forward" else [word])
    )
    ids = None if how.ids is None else read_ids(how.ids)
    report = checked_file(
        case, actual, only, how.names, ids, how.dtype, download=how.download
    )
    options = {"names": how.names, "tokens": how.ids}
    words = " ".join(f"--{name} {x}" for name, x in options.items() if x is not None)
    report = replace(report, options=words)
    to.deliver(report_document(report, str(actual)), report_table(report, str(actual)))
    raise typer.Exit(EXIT[report.verdict])


@with_groups
def fuzz_command(
    program: Annotated[
        list[str], argument("PROGRAM...", "Its words; {case} and {out} are files.")
    ],
    *,
    plan: Annotated[Fuzzing, Group("Cases")],
    to: Annotated[FolderOptions, Group("Output")],
) -> None:
    """Exits with 0 if all cases pass, with 1 if one fails, and with 3 if some are not judged."""
    raise typer.Exit(
        EXIT[fuzz(program, plan, to.output, lambda line: say(joined(fitting(line))))]
    )
