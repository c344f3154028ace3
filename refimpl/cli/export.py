"""`refimpl export`: a model as an ONNX graph."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import NOISE, PERTURBATION
from refimpl.cli.terminal import deliver
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Perturbation


@dataclass(frozen=True)
class GraphOptions:
    """What the graph computes, and how it is written."""

    dtype: Literal["float32", "float64"] = opt.field_option(
        "float32", "Precision of the computation. float64 certifies float32."
    )
    weights: Literal["external", "reference", "embedded"] = opt.field_option(
        "external",
        "external: copied into one file beside the graph, FILE.onnx.data. reference: not copied; "
        "the graph points into the model's own files. embedded: in the graph's file.",
    )
    outputs: Literal["logits", "trace"] = opt.field_option(
        "logits", "logits, or trace: every step of every block as well."
    )
    experiment: bool = opt.field_option(
        False,
        "Export the perturbation experiment instead of the model: from token ids and noise to "
        "drift, alignment and absorption coefficients.",
    )
    opset: int | None = opt.field_option(
        None, "Version of ONNX's operators, 18 to 25. Default: 21, or 23 with --fused.", "N"
    )
    fused: bool = opt.field_option(
        False, "Write attention, rotary positions and RMS norms as one operator each; float32 only."
    )
    force: bool = opt.field_option(False, "Replace an existing output.")


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
        opt.OutputKind.GRAPH,
    ] = None,
    config: opt.ConfigOption = None,
    download: opt.DownloadOption = False,
    graph: Annotated[GraphOptions, opt.OptionGroup.of(GraphOptions, "Graph")],
    plan: Annotated[Perturbation, PERTURBATION.only(*NOISE)],
    as_json: Annotated[bool, opt.flag("Print JSON instead of the table.", None, "--json")] = False,
) -> None:
    """Write a model as an ONNX graph that other runtimes execute.

    The graph takes token ids of any batch size and length. Needs pip install 'refimpl[onnx]'.
    """
    if graph.experiment:
        opt.refuse(context, ("outputs",), "--experiment", "the outputs of the experiment")
    else:
        opt.refuse(context, NOISE, "a model's graph", "--experiment, which perturbs states")
    from refimpl.onnx.export import export, exported_document
    from refimpl.show.export import export_table

    options = vars(graph) | {"experiment": plan if graph.experiment else None}
    exported = export(read_model(model, config, download=download), output, **options)
    deliver(exported_document(exported), export_table(exported), as_json)
