"""`refimpl convert`: a checkpoint in GGUF, FP8 or MXFP4 as an ordinary folder."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from refimpl.arguments import common_option, same_option
from refimpl.cli.groups import ForceOptions, JsonFlag, ModelOptions
from refimpl.cli.options import Group, argument, with_groups
from refimpl.cli.outputs import OutputKind, output_option
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.convert.conversion import FloatDtype, convert
from refimpl.errors import printable
from refimpl.running.file_system import MIB

SourcePath = Annotated[
    Path,
    argument(
        "SOURCE",
        "A GGUF file, or a folder in FP8 or MXFP4, or the id of one in the Hugging Face cache, "
        "ORG/NAME[@REVISION].",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ForceOptions):
    """What is written."""

    output: Path = output_option(..., "The new folder.", "FOLDER", OutputKind.FOLDER)
    dtype: FloatDtype | None = common_option(
        None,
        "Of all weights. Default: of each tensor the narrowest that contains its values exactly. "
        "Those of GGUF's blocks and of FP8 are products of a number and a scale, which need "
        "float32; MXFP4 fits bfloat16; 16 bits stay 16 bits.",
    )
    download: bool = same_option(ModelOptions, "download")


@with_groups
def command(
    source: SourcePath, *, to: Annotated[ConvertOptions, Group("Output")], shown: JsonFlag
) -> None:
    """GGUF needs pip install 'refimpl[convert]'."""
    with progress_bar("convert") as progress:
        done = convert(
            source, to.output, to.dtype, force=to.force, download=to.download, progress=progress
        )
    lines = [
        f"written: {to.output} ({done.family}, {done.tensors} tensors, {done.bytes / MIB:,.1f} MiB)"
    ]
    reason = "as asked for" if to.dtype else "exact"
    lines += [f"{kind}: {dtype} ({reason})" for kind, dtype in done.dtypes.items()]
    deliver({"conversion": asdict(done)}, "".join(printable(x) + "\n" for x in lines), shown.json)
