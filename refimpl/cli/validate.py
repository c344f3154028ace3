"""`refimpl validate`: whether another computation of a model agrees with NumPy."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import Source, source_options
from refimpl.cli.terminal import deliver
from refimpl.loading.checkpoint import read_model

COMPARISON = "Comparison"  # heading in --help
FEW = source_options(
    "3; for rows of ids, all rows",
    "13, or the model's longest sequence if that is shorter; for rows of ids, their width",
)


@opt.with_groups
def command(
    model: opt.ModelPath,
    *,
    config: opt.Config = None,
    graph: Annotated[
        Path | None,
        opt.option(
            "The model's ONNX graph. If it outputs no trace points, only its logits are compared. "
            "Default: a graph with every trace point, recorded for this run.",
            "FILE.onnx",
            COMPARISON,
        ),
    ] = None,
    against: Annotated[
        Literal["onnxruntime", "onnx-reference", "torch"],
        opt.option(
            "What runs the graph: onnxruntime, or the evaluator of onnx. torch runs transformers "
            "instead of a graph, if it is installed.",
            panel=COMPARISON,
        ),
    ] = "onnxruntime",
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        opt.option("auto: a GPU if one works, else the CPU.", panel=COMPARISON),
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "float64"] | None,
        opt.option("Precision. Default: both, or that of the graph's file.", panel=COMPARISON),
    ] = None,
    tolerance: Annotated[
        float | None,
        opt.option(
            "Largest relative error of the worst token. Default: 1e-12 in float64; in float32 "
            "1e-5, or 1e-4 if the hidden size is 256 or more.",
            "X",
            COMPARISON,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        opt.option("Threads of onnxruntime, 1 or more. Default: one per core.", "N", COMPARISON),
    ] = None,
    source: Annotated[Source, FEW],
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Compare the values of every step of every block, and the logits, with another runtime.

    Exits with 0 if all agree. Otherwise exits with 1 and names the first step that disagrees and
    the usual causes. Needs pip install 'refimpl[onnx]'.
    """
    from refimpl.onnx.validate import validate, validation_tokens
    from refimpl.show.validation import validation_document, validation_table

    opened = read_model(model, config)
    opt.check_outputs(opened, source.files | {"--graph": graph, "--config": config}, output)
    validation = validate(
        opened,
        validation_tokens(opened, **vars(source)),
        graph,
        against,
        device=device,
        dtypes=None if dtype is None else (dtype,),
        tolerance=tolerance,
        threads=threads,
    )
    deliver(validation_document(validation), validation_table(validation), as_json, output)
    if not validation.agrees:
        raise typer.Exit(1)
