"""`refimpl case` and `refimpl check`: cases, and whether another implementation agrees."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.arguments import common_option, option, same_option
from refimpl.cli.graphs import TIME_LIMIT
from refimpl.cli.groups import (
    JsonFlag,
    ModelOptions,
    ModelPath,
    Outputs,
    Source,
    Where,
    source_group,
)
from refimpl.cli.options import Group, argument, examples, refuse, with_groups
from refimpl.cli.outputs import OutputKind, output_option
from refimpl.cli.terminal import deliver, say
from refimpl.loading.files.documents import plain
from refimpl.loading.files.file_reading import reading
from refimpl.oracle.case_folders import case_folder, cases_below, core_case, core_cases
from refimpl.oracle.recipe import Recipe
from refimpl.show.header import fitting, joined
from refimpl.storage.file_system import open_file
from refimpl.storage.files import write_text
from refimpl.tokens.model_tokens import model_tokens
from refimpl.tokens.samples import SAMPLES, SEQ_LEN

CasePath = Annotated[
    Path,
    argument(
        "CASE", "A case's folder, with case.json, or the name of a core case: llama.", core_case
    ),
]

TRANSFORMERS = Path("transformers")  # in place of a file of names

app = typer.Typer()


@app.callback(invoke_without_command=True)
def cases(context: typer.Context) -> None:
    """Print the help if there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@dataclass(frozen=True)
class CaseOptions:
    """Where a case is written."""

    output: Path = output_option(
        ...,
        "The case's folder, which refers to the model by a relative path.",
        "CASE",
        OutputKind.FOLDER,
    )


@app.command(
    "make",
    epilog=examples(
        "refimpl case make MODEL -o CASE --text FILE",
        "refimpl case make MODEL -o CASE --only 'blocks.*' --sample-tokens 4",
    ),
)
@with_groups
def make(
    model: ModelPath,
    *,
    to: Annotated[CaseOptions, Group("Output")],
    where: Where,
    source: Annotated[Source, source_group(SAMPLES, SEQ_LEN)],
    recipe: Annotated[Recipe, Group("Recipe")],
) -> None:
    """Compute every step of the method on a model in float64, to check other implementations."""
    from refimpl.oracle.case import make_case  # not for --help

    opened = where.read(model)
    tokens = model_tokens(opened, **vars(source))
    case = make_case(opened, tokens, recipe, to.output)
    text = f"{case.folder}: {len(case.expected):,} steps of {opened.name}, {tokens.source}"
    say(joined(fitting(text)))


@app.command("list", epilog=examples("refimpl case list", "refimpl case list FOLDER --json"))
@with_groups
def list_command(
    folder: Annotated[
        Path | None,
        argument("FOLDER", "A folder of cases. Default: the core cases, in refimpl."),
    ] = None,
    *,
    to: JsonFlag,
) -> None:
    """List cases: the model's family, the tokens, and the number of steps."""
    from refimpl.show.oracle import cases_document, cases_table  # not for --help

    cases = core_cases() if folder is None else cases_below(folder)
    deliver(cases_document(cases), cases_table(cases), to.json)


@app.command("show", epilog=examples("refimpl case show llama", "refimpl case show CASE --json"))
@with_groups
def show_command(
    case: CasePath,
    *,
    to: JsonFlag,
) -> None:
    """Show what a case contains: its inputs, its recipe, and each step with its shape and dtype.

    A candidate writes a tensor of this shape for each step. Float steps may have any float dtype.
    """
    from refimpl.show.oracle import case_table  # not for --help

    one = case_folder(case)
    deliver(plain(one.facts), case_table(one), to.json)


@dataclass(frozen=True)
class CheckOptions:
    """What is checked, and how."""

    only: list[str] | None = common_option(
        None,
        "Check these steps alone: a shell pattern such as 'blocks.*'; may be repeated. All of "
        "them must be there. Default: every step of the case.",
        "PATTERN",
    )
    names: Path | None = common_option(
        None,
        "The tensors are outputs of modules, by the modules' names: transformers (those of its "
        "modules), or a JSON file with the module of each step. Checks the steps they hold.",
        "FILE",
    )
    dtype: Literal["bfloat16", "float16", "float32", "float64", "tf32"] | None = common_option(
        None,
        "Precision of the candidate. Default: what its file states, or the coarsest of its "
        "tensors.",
    )
    stepwise: bool = common_option(
        False,
        "The candidate started each step from the case's own values, so no step depends on an "
        "earlier choice. Default: it ran from the tokens (chained).",
    )
    resolvable: bool = common_option(
        False,
        "Exit with 0 if all steps agree that the candidate's dtype resolves. The others are "
        "listed; of an experiment, the coarse steps must agree. Default: exit with 3 then.",
    )
    device: Literal["auto", "cuda", "webgpu", "cpu"] = option(
        "auto", "Device for a graph. auto: a GPU if one works, else the CPU."
    )
    time_limit: float | None = option(None, TIME_LIMIT, "SECONDS")
    junit_xml: Path | None = common_option(
        None, "Also write JUnit's XML, with a test case per step.", "FILE", kind=OutputKind.FILE
    )
    download: bool = same_option(ModelOptions, "download")


@with_groups
def check_command(
    context: typer.Context,
    case: CasePath,
    actual: Annotated[
        Path,
        argument(
            "ACTUAL",
            "What the candidate computed: a safetensors file with a tensor per step. Or the "
            "candidate's ONNX graph, which refimpl runs (needs refimpl[onnx]). Or the folder that "
            "transformers' model_addition_debugger_context wrote, with use_repr=False.",
        ),
    ],
    *,
    how: Annotated[CheckOptions, Group("Graph")],
    to: Outputs,
) -> None:
    """Exits with 0 if all steps agree, with 1 if one diverges, and with 2 if an input is unusable.

    Exits with 3 if nothing diverges, but a step is missing, could not be judged, or is not resolved
    by the dtype.
    """
    if (summary := os.environ.get("GITHUB_STEP_SUMMARY")) and os.path.exists(summary):
        with reading(Path(summary)):
            open_file(Path(summary)).close()  # it is appended to, and a pipe would block
    from refimpl.oracle.case import read_case  # not for --help
    from refimpl.oracle.check import EXIT, check, read_candidate, stated_settings
    from refimpl.oracle.module_outputs import DumpFolder, asked_steps, module_steps, read_names
    from refimpl.show.oracle import report_document, report_table, report_xml

    opened = read_case(case, download=how.download)
    stated: Mapping[str, str] = {}
    modules: tuple[str, ...] = ()  # steps that outputs of modules hold
    if actual.suffix == ".onnx":
        fixed = "a file of tensors: a graph is chained, and has our names"
        refuse(context, ("stepwise", "names"), "a graph", fixed)
        from refimpl.onnx.foreign_graph import open_foreign

        graph = open_foreign(actual, opened.model, device=how.device, time_limit=how.time_limit)
        arrays, computed = dict(graph.run(opened)), graph.dtype
    else:
        fixed = "a graph, FILE.onnx, which is run"
        refuse(context, ("device", "time_limit"), "a file of tensors", fixed)
        arrays, computed = {}, None
        if not actual.is_dir():
            arrays, stated = read_candidate(actual), stated_settings(actual)
            computed = stated.get("dtype")
        if how.names is not None or actual.is_dir():
            outputs = DumpFolder(actual) if actual.is_dir() else arrays
            wanted = None if how.names in (None, TRANSFORMERS) else read_names(how.names, opened)
            arrays = module_steps(opened, outputs, wanted)
            modules = asked_steps(opened, arrays) if wanted is None else tuple(wanted)
    report = check(
        opened, arrays, tuple(how.only or modules or ("*",)), how.dtype or computed, how.stepwise
    )
    missed = tuple(x for x in opened.expected if x not in modules) if modules else ()
    report = replace(report, stated=stated, uncovered=missed, names=str(how.names or ""))
    text = report_table(report, str(actual))
    if how.junit_xml is not None:
        write_text(how.junit_xml, report_xml(report))
    if summary:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(f"```text\n{text}```\n")
    to.deliver(report_document(report, str(actual)), text)
    if (code := EXIT[report.verdict]) and not (how.resolvable and report.verdict == "resolved"):
        raise typer.Exit(code)
