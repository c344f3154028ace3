"""`refimpl score`: from a model to absorption coefficients and an allocation."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from refimpl.cli import options as opt
from refimpl.cli.options import option
from refimpl.cli.terminal import deliver, progress_bar
from refimpl.errors import RefimplError
from refimpl.jobs.output import checked_output
from refimpl.jobs.request import Request
from refimpl.jobs.score import score
from refimpl.jobs.tokens import model_tokens
from refimpl.method.perturbation import Kind, NoiseScale, NoiseShape, Norm, Perturbation, Sink
from refimpl.model.checkpoint import Model, read_model

TOKENS, PERTURBATION, RUNNING = "Tokens", "Perturbation", "Running"  # headings in --help
COMPANIONS = (  # files beside the weights that are read, too
    "config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


@opt.with_request
def command(
    context: typer.Context,
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
    text: Annotated[
        Path | None,
        option(
            "Text (UTF-8) to cut samples from, spread over all of it, by the tokenizer.json in the "
            "model's folder.",
            "FILE",
            TOKENS,
        ),
    ] = None,
    tokens: Annotated[
        Path | None,
        option(
            "Token ids, .npy or .jsonl, used as they are. With neither text nor ids, ids are drawn "
            "at random.",
            "FILE",
            TOKENS,
        ),
    ] = None,
    samples: Annotated[
        int | None, option("Number of samples. Default: 8; of rows of ids, all.", "N", TOKENS)
    ] = None,
    seq_len: Annotated[
        int | None,
        option(
            "Tokens per sample, BOS included. Default: 512, or the model's longest if that is "
            "less; of rows of ids, their width.",
            "N",
            TOKENS,
        ),
    ] = None,
    eta: Annotated[
        str,
        option(
            "Size of the noise as a fraction of the state's norm, above 0; several with commas "
            "are measured together, such as 1e-4,1e-2,1.",
            "X[,X...]",
            PERTURBATION,
        ),
    ] = "0.01",
    perturbation: Annotated[
        Kind,
        option(
            "gaussian: noise on a block's output; pruning: the block itself, pruned by Wanda as "
            "the base says.",
            panel=PERTURBATION,
        ),
    ] = "gaussian",
    noise_scale: Annotated[
        NoiseScale, option("Noise of this size on every token, or on all.", panel=PERTURBATION)
    ] = "token",
    noise_shape: Annotated[
        NoiseShape,
        option("The same noise in all channels, or as each one varies.", panel=PERTURBATION),
    ] = "isotropic",
    norm: Annotated[
        Norm, option("Drift per token and averaged, or of all at once.", panel=PERTURBATION)
    ] = "token",
    sink: Annotated[
        Sink,
        option("Whether tokens of more than 20 times the median norm count.", panel=PERTURBATION),
    ] = "include",
    draws: Annotated[
        int, option("Noise draws per sample and block, 1 or more.", "N", PERTURBATION)
    ] = 1,
    seed: Annotated[
        int, option("Seed of the noise and of ids drawn at random, 0 or more.", "N", PERTURBATION)
    ] = 0,
    wanted: Request,
    dtype: Annotated[
        Literal["float32", "float64"],
        option("Precision of the computation; float64 certifies float32.", panel=RUNNING),
    ] = "float32",
    threads: Annotated[
        int | None,
        option("Worker threads, 1 or more. Default: one per core.", "N", RUNNING),
    ] = None,
    memory: Annotated[
        str | None,
        option(
            "Memory for residual states, such as 512M or 1.5G; results do not depend on it. "
            "Default: what is free, at most 2 GiB.",
            "SIZE",
            RUNNING,
        ),
    ] = None,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Measure how far later blocks absorb or amplify each block's damage, and allocate sparsity.

    The absorption coefficient r is the share of a block's relative drift that is left after the
    last block: above 1 the blocks after it amplify, below 1 they absorb.
    """
    if perturbation == "pruning":
        _refuse(context, "eta", "noise_scale", "noise_shape")
    etas = opt.numbers(eta, "eta")
    plan = Perturbation(perturbation, etas, noise_scale, noise_shape, norm, sink, draws, seed)
    opened = read_model(model, config)
    options = {"--text": text, "--tokens": tokens, "--config": config}
    checked_output(output, _files(opened) | options | {"--base": opt.base_file(wanted)})
    ids = model_tokens(opened, text, tokens, samples, seq_len, seed)
    with progress_bar("scoring") as progress:
        found = score(
            opened,
            ids,
            plan,
            wanted,
            dtype=dtype,
            threads=threads,
            memory=memory,
            progress=progress,
        )
    deliver(found, wanted, as_json, output)


def _refuse(context: typer.Context, *names: str) -> None:
    """Refuse options of the noise where there is none."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            given = f"--{name.replace('_', '-')}"
            raise RefimplError(
                f"{given} with --perturbation pruning",
                "no options of the noise: the size of the error is what pruning makes it",
                f"leave {given} away",
            )


def _files(model: Model) -> dict[str, Path | None]:
    """The files that a model is read from, by what to call them."""
    beside = [model.folder / name for name in COMPANIONS]
    paths = [model.path, *(file.path for file in model.files), *beside]
    return {f"the model's {path.name}": path for path in paths}
