"""`refimpl convert`, `export` and `validate`: a model in other formats, and other runtimes."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from refimpl.arguments import (
    GraphDtype,
    GraphOutputs,
    common_option,
    option,
    same_option,
)
from refimpl.cli import groups
from refimpl.cli.options import Group, OutputKind, argument, output_option, with_groups
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.convert.conversion import FloatDtype, convert
from refimpl.errors import printable
from refimpl.loading.samples import VALIDATED
from refimpl.loading.text import model_tokens
from refimpl.running.file_system import MIB
from refimpl.running.settings import Settings
from refimpl.version import __version__

SourcePath = Annotated[
    Path,
    argument(
        "SOURCE",
        "A GGUF file; or, in FP8 or MXFP4, a folder, or an id ORG/NAME[@REVISION].",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(groups.ForceOptions):
    """What is written."""

    output: Path = output_option(..., "The new folder.", "FOLDER", OutputKind.FOLDER)
    dtype: FloatDtype | None = common_option(
        None,
        "Dtype of all weights. Default: for each tensor, the narrowest that stores it exactly.",
    )
    download: bool = same_option(groups.ModelOptions, "download")


@with_groups
def convert_command(
    source: SourcePath,
    *,
    to: Annotated[ConvertOptions, Group("Output")],
    shown: groups.JsonFlag,
) -> None:
    """GGUF needs the extra [convert]."""
    with progress_bar("convert") as progress:
        done = convert(source, **vars(to), progress=progress)
    size, reason = (
        f"{done.bytes / MIB:,.1f} MiB",
        "as asked for" if to.dtype else "exact",
    )
    lines = [f"written: {to.output} ({done.family}, {done.tensors} tensors, {size})"]
    lines += [f"{kind}: {dtype} ({reason})" for kind, dtype in done.dtypes.items()]
    document = {"refimpl": __version__, "conversion": asdict(done)}
    deliver(document, "".join(printable(x) + "\n" for x in lines), shown.json)


@dataclass(frozen=True, kw_only=True)
class GraphOptions(groups.ForceOptions):
    """What the graph computes, and how it is written."""

    output: Path = output_option(
        ...,
        "The graph, whose weights are in FILE.onnx.data.",
        "FILE.onnx",
        OutputKind.GRAPH,
    )
    dtype: GraphDtype = same_option(Settings, "dtype", "float32")
    outputs: GraphOutputs = common_option(
        "logits", "logits, or trace: every step of every block."
    )
    opset: int = option(21, "Version of ONNX's operators, 18 to 25.", "N")


@with_groups
def export_command(
    model: groups.ModelPath,
    *,
    where: groups.Where,
    graph: Annotated[GraphOptions, Group("Graph")],
    to: groups.JsonFlag,
) -> None:
    """The graph takes any batch size and length. The command needs the extra [onnx]."""
    from refimpl.onnx.export import EXPORT_FORMAT, export
    from refimpl.show.oracle import export_table

    options = dict(vars(graph))
    exported = export(where.read(model), options.pop("output"), **options)
    facts = vars(exported) | {"graph": str(exported.graph), "data": str(exported.data)}
    deliver({"format": EXPORT_FORMAT, **facts}, export_table(exported), to.json)


@dataclass(frozen=True)
class ComparisonOptions:
    """What is compared, and how."""

    graph: Path | None = common_option(
        None,
        "The model's ONNX graph. If it outputs no trace points, only its logits are compared. "
        "Default: a graph with every trace point, recorded for this run.",
        "FILE.onnx",
    )
    dtype: GraphDtype | None = option(None, "Precision. Default: the file's, or both.")
    threads: int | None = same_option(Settings, "threads")
    time_limit: float | None = option(
        None,
        "Time limit to open the graph's file, and of each run. Default: a minute, or more by size.",
        "SECONDS",
    )


@with_groups
def validate_command(
    model: groups.ModelPath,
    *,
    where: groups.Where,
    options: Annotated[ComparisonOptions, Group("Comparison")],
    source: Annotated[groups.Source, groups.source_group(*VALIDATED)],
    to: groups.Outputs,
) -> None:
    """The verdict is made as by refimpl check. The command needs the extra [onnx].

    It exits with 0 if all steps agree, with 1 if one diverges, and with 3 if none diverges, but a
    step is missing or the dtype does not resolve it.
    """
    from refimpl.onnx.validate import validate
    from refimpl.oracle.check import EXIT
    from refimpl.show.oracle import validation_document, validation_table

    opened = where.read(model)
    tokens = model_tokens(opened, **vars(source), default=VALIDATED)
    validation = validate(opened, tokens, **vars(options))
    to.deliver(validation_document(validation), validation_table(validation))
    if code := EXIT[validation.verdict]:
        raise typer.Exit(code)
