"""`refimpl inspect`: what is pruned in a model's file."""

import json
from pathlib import Path
from typing import Annotated

import typer

from refimpl.cli import options as opt
from refimpl.cli.options import option
from refimpl.loading.checkpoint import read_model
from refimpl.pruning.copied_files import copies
from refimpl.pruning.inspection import inspect, inspection_document
from refimpl.show.inspection import inspection_table
from refimpl.storage.files import checked_output, write_json


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            readable=False,
            help="A .safetensors file, an index of shards, or a folder that holds either.",
        ),
    ],
    *,
    config: Annotated[
        Path | None,
        option("config.json, if not beside the weights or in them.", "FILE", None),
    ] = None,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Print the sparsity of every block and linear, N:M patterns, dtypes and sizes of a model.

    Zeros are counted in the file, so those that were there before pruning count, too.
    """
    opened = read_model(model, config)
    read = {f"the model's {path.name}": path for path in copies(opened).files.values()}
    checked_output(output, {"MODEL": model, **read})
    found = inspect(opened)
    document = inspection_document(found)
    if output is not None:
        write_json(output, document)
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    print(text if as_json else inspection_table(found), end="", flush=True)
