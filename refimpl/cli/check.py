"""`refimpl check`: whether another implementation computes what a case says."""

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli.options import Json, Output, option, refuse
from refimpl.storage.files import checked_output, write_json, write_text


def command(
    context: typer.Context,
    case: Annotated[
        Path,
        typer.Argument(metavar="CASE", readable=False, help="A case's folder, with case.json."),
    ],
    actual: Annotated[
        Path,
        typer.Argument(
            metavar="ACTUAL",
            readable=False,
            help="What the candidate computed: a safetensors file, a tensor per step; or its ONNX "
            "graph, which is run (needs refimpl[onnx]).",
        ),
    ],
    *,
    only: Annotated[
        list[str] | None,
        option(
            "Steps that are meant, as a shell pattern such as 'blocks.*'; may be given several "
            "times. All of them must be there. Default: every step of the case.",
            "PATTERN",
            None,
        ),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32", "float64"] | None,
        option(
            "What the candidate computed in. Default: the coarsest of its tensors.",
            panel=None,
        ),
    ] = None,
    stepwise: Annotated[
        bool,
        option(
            "The candidate was fed the case's own values at each step, so that no step hangs on "
            "an earlier choice. Default: it ran from the tokens (chained).",
            panel=None,
        ),
    ] = False,
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        option("Where a graph is run. auto: a GPU where one works, else the CPU.", panel=None),
    ] = "auto",
    junit_xml: Annotated[
        Path | None,
        option("Write JUnit's XML as well, a test case per step.", "FILE", None),
    ] = None,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """Hold what another implementation computed against a case, and say where it first went wrong.

    Exits with 0 if all steps agree, 1 if one diverges, 2 if something cannot be used, and 3 if
    nothing diverges but a step is missing or could not be judged.
    """
    from refimpl.oracle.case import read_case  # not for --help
    from refimpl.oracle.check import EXIT, check, read_candidate
    from refimpl.show.oracle import report_document, report_table, report_xml

    inputs = {"ACTUAL": actual, **{f"the case's {p.name}": p for p in case.glob("*")}}
    for path in (output, junit_xml):
        checked_output(path, inputs)
    opened = read_case(case)
    if actual.suffix == ".onnx":
        refuse(context, ("stepwise",), "a graph", "no such option: a graph runs from the tokens")
        from refimpl.onnx.case_steps import graph_steps

        plan = opened.recipe.perturbation
        arrays, computed = graph_steps(actual, opened.model.config, opened.inputs, plan, device)
    else:
        refuse(context, ("device",), "a file of tensors", "a graph, FILE.onnx, which is run")
        arrays, computed = read_candidate(actual), None
    report = check(opened, arrays, tuple(only or ("*",)), dtype or computed, stepwise)
    document, text = report_document(report, str(actual)), report_table(report, str(actual))
    if output is not None:
        write_json(output, document)
    if junit_xml is not None:
        write_text(junit_xml, report_xml(report))
    if summary := os.environ.get("GITHUB_STEP_SUMMARY"):
        with open(summary, "a", encoding="utf-8") as file:
            file.write(f"```text\n{text}```\n")
    printed = json.dumps(document, indent=1, allow_nan=False) + "\n"
    print(printed if as_json else text, end="", flush=True)
    if code := EXIT[report.verdict]:
        raise typer.Exit(code)
