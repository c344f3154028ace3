"""`refimpl export`: a model as an ONNX graph."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import NoiseScaleOption, NoiseShapeOption, NormOption, SinkOption
from refimpl.cli.options import option
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation

GRAPH = "Graph"  # heading in --help
PUSH = ("noise_scale", "noise_shape", "norm", "sink")


def command(
    context: typer.Context,
    model: opt.ModelPath,
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE.onnx",
            readable=False,
            help="The graph's file; it appears whole or not at all. Default: beside the weights.",
        ),
    ] = None,
    config: opt.Config = None,
    dtype: Annotated[
        Literal["float32", "float64"],
        option("Precision of the computation; float64 certifies float32.", panel=GRAPH),
    ] = "float32",
    weights: Annotated[
        Literal["external", "reference", "embedded"],
        option(
            "external: copied into one file beside the graph, FILE.onnx.data; reference: not "
            "copied, the graph points into the model's own files; embedded: in the graph's file.",
            panel=GRAPH,
        ),
    ] = "external",
    outputs: Annotated[
        Literal["logits", "trace"],
        option("logits; or trace: every step of every block as well.", panel=GRAPH),
    ] = "logits",
    experiment: Annotated[
        bool,
        typer.Option(
            "--experiment",
            rich_help_panel=GRAPH,
            help="The perturbation experiment in place of the model: from token ids and noise to "
            "drift, alignment and absorption coefficients.",
        ),
    ] = False,
    noise_scale: NoiseScaleOption = "token",
    noise_shape: NoiseShapeOption = "isotropic",
    norm: NormOption = "token",
    sink: SinkOption = "include",
    opset: Annotated[
        int | None,
        option("Version of ONNX's operators, 18 to 25. Default: 21; with --fused, 23.", "N", GRAPH),
    ] = None,
    fused: Annotated[
        bool,
        typer.Option(
            "--fused",
            rich_help_panel=GRAPH,
            help="Attention, rotary positions and RMS norms as one operator each; float32 only.",
        ),
    ] = False,
    sparse: Annotated[
        Literal["auto", "never"],
        option(
            "auto: weights are written without their zeros where that is smaller, in float32 from "
            "66.7 % zeros on; runtimes make them dense when they load.",
            panel=GRAPH,
        ),
    ] = "auto",
    force: Annotated[
        bool,
        typer.Option("--force", rich_help_panel=GRAPH, help="Replace an existing output."),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print JSON in place of the table."),
    ] = False,
) -> None:
    """Write a model as an ONNX graph that other runtimes execute.

    It takes token ids of any batch size and length. Needs pip install 'refimpl[onnx]'.
    """
    if experiment:
        opt.refuse(context, ("outputs",), "--experiment", "the experiment's own outputs")
    else:
        opt.refuse(context, PUSH, "a model's graph", "--experiment, which pushes states")
    if weights == "reference":
        opt.refuse(context, ("sparse",), "--weights reference", "weights as they are in the file")
    plan = Perturbation("gaussian", (0.01,), noise_scale, noise_shape, norm, sink)
    from refimpl.onnx.export import export, exported_document
    from refimpl.show.export import export_table

    made = export(
        read_model(model, config),
        output,
        dtype=dtype,
        weights=weights,
        outputs=outputs,
        experiment=plan if experiment else None,
        opset=opset,
        fused=fused,
        sparse=sparse == "auto",
        force=force,
    )
    text = json.dumps(exported_document(made), indent=1) + "\n" if as_json else export_table(made)
    print(text, end="", flush=True)
