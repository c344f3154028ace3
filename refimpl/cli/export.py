"""`refimpl export`: a model as an ONNX graph."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import NOISE, PERTURBATION
from refimpl.cli.terminal import deliver
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation

GRAPH = "Graph"  # heading in --help


@opt.with_groups
def command(
    context: typer.Context,
    model: opt.ModelPath,
    *,
    output: Annotated[
        Path | None,
        opt.output(
            "FILE.onnx",
            "The graph's file, which appears whole or not at all. Default: beside the weights.",
        ),
    ] = None,
    config: opt.Config = None,
    dtype: Annotated[
        Literal["float32", "float64"],
        opt.option("Precision of the computation. float64 certifies float32.", panel=GRAPH),
    ] = "float32",
    weights: Annotated[
        Literal["external", "reference", "embedded"],
        opt.option(
            "external: copied into one file beside the graph, FILE.onnx.data. reference: not "
            "copied; the graph points into the model's own files. embedded: in the graph's file.",
            panel=GRAPH,
        ),
    ] = "external",
    outputs: Annotated[
        Literal["logits", "trace"],
        opt.option("logits, or trace: every step of every block as well.", panel=GRAPH),
    ] = "logits",
    experiment: Annotated[
        bool,
        opt.flag(
            "--experiment",
            "Export the perturbation experiment instead of the model: from token ids and noise to "
            "drift, alignment and absorption coefficients.",
            GRAPH,
        ),
    ] = False,
    plan: Annotated[Perturbation, PERTURBATION.only(*NOISE)],
    opset: Annotated[
        int | None,
        opt.option(
            "Version of ONNX's operators, 18 to 25. Default: 21, or 23 with --fused.", "N", GRAPH
        ),
    ] = None,
    fused: Annotated[
        bool,
        opt.flag(
            "--fused",
            "Write attention, rotary positions and RMS norms as one operator each; float32 only.",
            GRAPH,
        ),
    ] = False,
    sparse: Annotated[
        Literal["auto", "never"],
        opt.option(
            "auto: write weights without their zeros if that is smaller, which in float32 needs "
            "66.7 % zeros. Runtimes make them dense again when they load.",
            panel=GRAPH,
        ),
    ] = "auto",
    force: Annotated[bool, opt.flag("--force", "Replace an existing output.", GRAPH)] = False,
    as_json: Annotated[bool, opt.flag("--json", "Print JSON instead of the table.")] = False,
) -> None:
    """Write a model as an ONNX graph that other runtimes execute.

    The graph takes token ids of any batch size and length. Needs pip install 'refimpl[onnx]'.
    """
    if experiment:
        opt.refuse(context, ("outputs",), "--experiment", "the outputs of the experiment")
    else:
        opt.refuse(context, NOISE, "a model's graph", "--experiment, which perturbs states")
    if weights == "reference":
        opt.refuse(context, ("sparse",), "--weights reference", "weights as they are in the file")
    from refimpl.onnx.export import export, exported_document
    from refimpl.show.export import export_table

    exported = export(
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
    deliver(exported_document(exported), export_table(exported), as_json)
