"""`refimpl validate`: whether another computation of a model agrees with NumPy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import Source, source_options
from refimpl.cli.terminal import deliver
from refimpl.loading.checkpoint import read_model

TIME_LIMIT = (
    "The longest that the graph's file may take to open, or for one run. Default: a minute, and "
    "more for a large model or many tokens."
)
VALIDATION_SOURCE = source_options(
    "3; for rows of ids, all rows",
    "13, or the model's longest sequence if that is shorter; for rows of ids, their width",
)


@dataclass(frozen=True)
class ComparisonOptions:
    """What is compared, and how."""

    graph: Path | None = opt.field_option(
        None,
        "The model's ONNX graph. If it outputs no trace points, only its logits are compared. "
        "Default: a graph with every trace point, recorded for this run.",
        "FILE.onnx",
    )
    against: Literal["onnxruntime", "onnx-reference", "torch"] = opt.field_option(
        "onnxruntime",
        "What runs the graph: onnxruntime, or the evaluator of onnx. torch runs transformers "
        "instead of a graph, if it is installed.",
    )
    device: Literal["auto", "cuda", "cpu"] = opt.field_option(
        "auto", "auto: a GPU if one works, else the CPU."
    )
    dtypes: tuple[str, ...] | None = opt.field_option(
        None,
        "Precision. Default: both, or that of the graph's file.",
        name="dtype",
        type=Literal["float32", "float64"] | None,
        read=lambda dtype: dtype and (dtype,),
    )
    threads: int | None = opt.field_option(
        None, "Threads of onnxruntime, 1 or more. Default: one per core.", "N"
    )
    time_limit: float | None = opt.field_option(None, TIME_LIMIT, "SECONDS")


@opt.with_groups
def command(
    model: opt.ModelPath,
    *,
    config: opt.ConfigOption = None,
    download: opt.DownloadOption = False,
    options: Annotated[ComparisonOptions, opt.OptionGroup.of(ComparisonOptions, "Comparison")],
    source: Annotated[Source, VALIDATION_SOURCE],
    as_json: opt.JsonOption = False,
    output: opt.OutputOption = None,
) -> None:
    """Compare the values of every step of every block, and the logits, with another runtime.

    Judges as refimpl check does. Exits with 0 if all steps agree, with 1 if one diverges, and with
    3 if nothing diverges, but a step is missing or not resolved by the dtype. Needs pip install
    'refimpl[onnx]'.
    """
    from refimpl.onnx.validate import validate, validation_tokens
    from refimpl.oracle.check import EXIT
    from refimpl.show.validation import validation_document, validation_table

    opened = read_model(model, config, download=download)
    validation = validate(opened, validation_tokens(opened, **vars(source)), **vars(options))
    deliver(validation_document(validation), validation_table(validation), as_json, output)
    if code := EXIT[validation.verdict]:
        raise typer.Exit(code)
