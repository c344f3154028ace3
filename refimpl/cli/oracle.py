"""`refimpl case` and `refimpl check`: cases, and whether another implementation agrees."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import NOISE, PERTURBATION, SOURCE, Source, fraction
from refimpl.cli.options import FieldOption, OptionGroup
from refimpl.cli.terminal import deliver, say
from refimpl.cli.validate import TIME_LIMIT
from refimpl.loading.checkpoint import read_model
from refimpl.loading.files.documents import plain
from refimpl.loading.files.file_reading import reading
from refimpl.oracle.case_folders import case_folder, cases_below, core_case, core_cases
from refimpl.oracle.recipe import Recipe
from refimpl.show.header import fitting, joined
from refimpl.storage.file_system import open_file
from refimpl.storage.files import write_text
from refimpl.tokens.model_tokens import model_tokens

RECIPE = OptionGroup(
    Recipe,
    "Recipe",
    {
        "eta": FieldOption("Size of the noise as a fraction of the state's norm.", "X"),
        **PERTURBATION.only(*NOISE).options,
        "seed": FieldOption("Seed of the noise.", "N"),
        "sparsity": FieldOption(
            "Fraction of all prunable weights to prune, 0 to 1, or a percentage such as 50%.",
            "FRACTION",
            type=str,
            default=str(Recipe().sparsity),
            read=fraction,
        ),
        "pattern": FieldOption("Pattern N:M; empty for none.", "N:M", "nm"),
        "shown": FieldOption(
            "Block whose scores and weights are steps; may be repeated. Default: 0.",
            "N",
            type=list[int] | None,
            default=None,
            read=lambda blocks: tuple(blocks or Recipe().shown),
        ),
        "only": FieldOption(
            "Compute these steps of the forward and the experiments alone: a shell pattern such as "
            "'blocks.*'; may be repeated. Default: every step of the method.",
            "PATTERN",
            type=list[str] | None,
            default=None,
            read=lambda patterns: tuple(patterns or ()),
        ),
        "sample_tokens": FieldOption(
            "With --only: keep K tokens of each sequence, evenly spread, of the trace points. "
            "Default: all.",
            "K",
        ),
    },
)

CasePath = Annotated[
    Path,
    opt.argument(
        "CASE", "A case's folder, with case.json, or the name of a core case: llama.", core_case
    ),
]

GRAPH = "Advanced: Graph"  # heading in --help
TRANSFORMERS = Path("transformers")  # in place of a file of names

app = typer.Typer()


@app.callback(invoke_without_command=True)
def cases(context: typer.Context) -> None:
    """Print the help if there is no command."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(
    "make",
    epilog=opt.examples(
        "refimpl case make MODEL -o CASE --text FILE",
        "refimpl case make MODEL -o CASE --only 'blocks.*' --sample-tokens 4",
    ),
)
@opt.with_groups
def make(
    model: opt.ModelPath,
    output: Annotated[
        Path,
        opt.output("CASE", "The case's folder, which refers to the model by a relative path."),
        opt.OutputKind.FOLDER,
    ],
    *,
    config: opt.ConfigOption = None,
    download: opt.DownloadOption = False,
    source: Annotated[Source, SOURCE],
    recipe: Annotated[Recipe, RECIPE],
) -> None:
    """Compute every step of the method on a model in float64, to check other implementations."""
    from refimpl.oracle.case import make_case  # not for --help

    opened = read_model(model, config, download=download)
    tokens = model_tokens(opened, **vars(source))
    case = make_case(opened, tokens, recipe, output)
    text = f"{case.folder}: {len(case.expected):,} steps of {opened.name}, {tokens.source}"
    say(joined(fitting(text)))


@app.command("list", epilog=opt.examples("refimpl case list", "refimpl case list FOLDER --json"))
@opt.with_groups
def list_command(
    folder: Annotated[
        Path | None,
        opt.argument("FOLDER", "A folder of cases. Default: the core cases, in refimpl."),
    ] = None,
    *,
    as_json: Annotated[bool, opt.flag("Print JSON instead of the table.", None, "--json")] = False,
) -> None:
    """List cases: the model's family, the tokens, and the number of steps."""
    from refimpl.show.oracle import cases_document, cases_table  # not for --help

    cases = core_cases() if folder is None else cases_below(folder)
    deliver(cases_document(cases), cases_table(cases), as_json)


@app.command(
    "show", epilog=opt.examples("refimpl case show llama", "refimpl case show CASE --json")
)
@opt.with_groups
def show_command(
    case: CasePath,
    *,
    as_json: Annotated[
        bool, opt.flag("Print case.json instead of the table.", None, "--json")
    ] = False,
) -> None:
    """Show what a case contains: its inputs, its recipe, and each step with its shape and dtype.

    A candidate writes a tensor of this shape for each step. Float steps may have any float dtype.
    """
    from refimpl.show.oracle import case_table  # not for --help

    one = case_folder(case)
    deliver(plain(one.facts), case_table(one), as_json)


@opt.with_groups
def check_command(
    context: typer.Context,
    case: CasePath,
    actual: Annotated[
        Path,
        opt.argument(
            "ACTUAL",
            "What the candidate computed: a safetensors file with a tensor per step. Or the "
            "candidate's ONNX graph, which refimpl runs (needs refimpl[onnx]). Or the folder that "
            "transformers' model_addition_debugger_context wrote, with use_repr=False.",
        ),
    ],
    *,
    download: opt.DownloadOption = False,
    only: Annotated[
        list[str] | None,
        opt.option(
            "Check these steps alone: a shell pattern such as 'blocks.*'; may be repeated. All of "
            "them must be there. Default: every step of the case.",
            "PATTERN",
        ),
    ] = None,
    names: Annotated[
        Path | None,
        opt.option(
            "The tensors are outputs of modules, by the modules' names: transformers (those of its "
            "modules), or a JSON file with the module of each step. Checks the steps they hold.",
            "FILE",
        ),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32", "float64", "tf32"] | None,
        opt.option(
            "Precision of the candidate. Default: what its file states, or the coarsest of its "
            "tensors."
        ),
    ] = None,
    stepwise: Annotated[
        bool,
        opt.flag(
            "The candidate started each step from the case's own values, so no step depends on an "
            "earlier choice. Default: it ran from the tokens (chained).",
            None,
            "--stepwise",
        ),
    ] = False,
    resolvable: Annotated[
        bool,
        opt.flag(
            "Exit with 0 if all steps agree that the candidate's dtype resolves. The others are "
            "listed; of an experiment, the coarse steps must agree. Default: exit with 3 then.",
            None,
            "--resolvable",
        ),
    ] = False,
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        opt.option("Device for a graph. auto: a GPU if one works, else the CPU.", None, GRAPH),
    ] = "auto",
    time_limit: Annotated[float | None, opt.option(TIME_LIMIT, "SECONDS", GRAPH)] = None,
    junit_xml: Annotated[
        Path | None,
        opt.option("Also write JUnit's XML, with a test case per step.", "FILE"),
        opt.OutputKind.FILE,
    ] = None,
    as_json: opt.JsonOption = False,
    output: opt.OutputOption = None,
) -> None:
    """Compare what another implementation computed with a case, and name the first wrong step.

    Exits with 0 if all steps agree, 1 if one diverges, 2 if an input cannot be used, and 3 if
    nothing diverges, but a step is missing, could not be judged, or is not resolved by the dtype.
    """
    if (summary := os.environ.get("GITHUB_STEP_SUMMARY")) and os.path.exists(summary):
        with reading(Path(summary)):
            open_file(Path(summary)).close()  # it is appended to, and a pipe would block
    from refimpl.oracle.case import read_case  # not for --help
    from refimpl.oracle.check import EXIT, check, read_candidate, stated_settings
    from refimpl.oracle.module_outputs import DumpFolder, asked_steps, module_steps, read_names
    from refimpl.show.oracle import report_document, report_table, report_xml

    opened = read_case(case, download=download)
    stated: Mapping[str, str] = {}
    modules: tuple[str, ...] = ()  # steps that outputs of modules hold
    if actual.suffix == ".onnx":
        fixed = "a file of tensors: a graph is chained, and has our names"
        opt.refuse(context, ("stepwise", "names"), "a graph", fixed)
        from refimpl.onnx.foreign_graph import open_foreign

        graph = open_foreign(actual, opened.model, device=device, time_limit=time_limit)
        arrays, computed = dict(graph.run(opened)), graph.dtype
    else:
        fixed = "a graph, FILE.onnx, which is run"
        opt.refuse(context, ("device", "time_limit"), "a file of tensors", fixed)
        arrays, computed = {}, None
        if not actual.is_dir():
            arrays, stated = read_candidate(actual), stated_settings(actual)
            computed = stated.get("dtype")
        if names is not None or actual.is_dir():
            outputs = DumpFolder(actual) if actual.is_dir() else arrays
            wanted = None if names in (None, TRANSFORMERS) else read_names(names, opened)
            arrays = module_steps(opened, outputs, wanted)
            modules = asked_steps(opened, arrays) if wanted is None else tuple(wanted)
    report = check(opened, arrays, tuple(only or modules or ("*",)), dtype or computed, stepwise)
    missed = tuple(x for x in opened.expected if x not in modules) if modules else ()
    report = replace(report, stated=stated, uncovered=missed, names=str(names or ""))
    text = report_table(report, str(actual))
    if junit_xml is not None:
        write_text(junit_xml, report_xml(report))
    if summary:
        with open(summary, "a", encoding="utf-8") as file:
            file.write(f"```text\n{text}```\n")
    deliver(report_document(report, str(actual)), text, as_json, output)
    if (code := EXIT[report.verdict]) and not (resolvable and report.verdict == "resolved"):
        raise typer.Exit(code)
