"""`refimpl validate`: whether another computation of a model agrees with NumPy."""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import TOKENS, TextOption, TokensOption
from refimpl.cli.options import option
from refimpl.loading.checkpoint import read_model
from refimpl.storage.files import checked_output, write_json

COMPARISON = "Comparison"  # heading in --help


def command(
    model: opt.ModelPath,
    *,
    config: opt.Config = None,
    graph: Annotated[
        Path | None,
        option(
            "The model's graph; only its logits are compared where it hands out no more. Default: "
            "one with every trace point, recorded for this run.",
            "FILE.onnx",
            COMPARISON,
        ),
    ] = None,
    against: Annotated[
        Literal["onnxruntime", "onnx-reference", "torch"],
        option(
            "What runs the graph: onnxruntime, or the evaluator of onnx; torch: transformers in "
            "place of a graph, where it is installed.",
            panel=COMPARISON,
        ),
    ] = "onnxruntime",
    device: Annotated[
        Literal["auto", "cuda", "cpu"],
        option("auto: a GPU where one works, else the CPU.", panel=COMPARISON),
    ] = "auto",
    dtype: Annotated[
        Literal["float32", "float64"] | None,
        option("Precision. Default: both; of a graph's file, its own.", panel=COMPARISON),
    ] = None,
    tolerance: Annotated[
        float | None,
        option(
            "Largest relative error of the worst token. Default: float64 1e-12; float32 1e-5, "
            "and 1e-4 from a hidden size of 256 on.",
            "X",
            COMPARISON,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        option("Threads of onnxruntime, 1 or more. Default: one per core.", "N", COMPARISON),
    ] = None,
    text: TextOption = None,
    tokens: TokensOption = None,
    samples: Annotated[
        int | None, option("Number of samples. Default: 3; of rows of ids, all.", "N", TOKENS)
    ] = None,
    seq_len: Annotated[
        int | None,
        option(
            "Tokens per sample, BOS included. Default: 13, or the model's longest if that is "
            "less; of rows of ids, their width.",
            "N",
            TOKENS,
        ),
    ] = None,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Compare every step of every block, and the logits, with another runtime, in values.

    Exits with 0 if all agree, and with 1 if not, naming the first step that does not and the usual
    causes. Needs pip install 'refimpl[onnx]'.
    """
    from refimpl.onnx.validate import validate, validation_tokens
    from refimpl.show.validation import validation_document, validation_table

    opened = read_model(model, config)
    inputs = {"--graph": graph, "--text": text, "--tokens": tokens, "--config": config}
    checked_output(output, opt.model_files(opened) | inputs)
    found = validate(
        opened,
        validation_tokens(opened, text, tokens, samples, seq_len),
        graph,
        against,
        device=device,
        dtypes=None if dtype is None else (dtype,),
        tolerance=tolerance,
        threads=threads,
    )
    document = validation_document(found)
    if output is not None:
        write_json(output, document)
    printed = json.dumps(document, indent=1, allow_nan=False) + "\n"
    print(printed if as_json else validation_table(found), end="", flush=True)
    if not found.agrees:
        raise typer.Exit(1)
