"""`refimpl score`: from a model to absorption coefficients and an allocation."""

from pathlib import Path
from typing import Annotated

import typer

from refimpl.cli import options as opt
from refimpl.cli.terminal import progress_bar, style
from refimpl.jobs.allocate import allocate
from refimpl.jobs.document import document
from refimpl.jobs.output import checked_output, write_json
from refimpl.jobs.score import score
from refimpl.jobs.tokens import model_tokens
from refimpl.method.correction import MAX_CORRECTION, STRENGTH
from refimpl.method.perturbation import Perturbation
from refimpl.model.checkpoint import read_model
from refimpl.show.table import table


def command(
    model: Annotated[Path, typer.Argument(help="A .safetensors file, an index, or a folder.")],
    config: Annotated[
        Path | None, typer.Option(help="config.json, if not beside the file.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A text file to draw samples from.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Token ids: .npy or .jsonl.")] = None,
    samples: Annotated[int | None, typer.Option(help="Number of samples. Default: 8.")] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens per sample. Default: 512, or what the model allows.")
    ] = None,
    eta: Annotated[
        str | None,
        typer.Option(help="Relative magnitude of the noise; several with commas. Default: 0.01."),
    ] = None,
    perturbation: Annotated[str, typer.Option(help="gaussian or pruning.")] = "gaussian",
    noise_scale: Annotated[str, typer.Option(help="token or sequence.")] = "token",
    noise_shape: Annotated[str, typer.Option(help="isotropic or channel.")] = "isotropic",
    norm: Annotated[str, typer.Option(help="Drift per token or sequence.")] = "token",
    sink: Annotated[str, typer.Option(help="include or exclude tokens of huge norm.")] = "include",
    draws: Annotated[int, typer.Option(help="Noise draws per sequence and block.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the noise, and of random ids.")] = 0,
    base: opt.Base = "uniform",
    base_option: opt.BaseOption = None,
    sparsity: opt.Sparsity = 0.7,
    correct: opt.Correct = None,
    strength: opt.Strength = STRENGTH,
    max_correction: opt.MaxCorrection = MAX_CORRECTION,
    correction_scale: opt.CorrectionScale = "raw",
    lo: opt.Lo = 0.0,
    hi: opt.Hi = 1.0,
    compat: opt.Compat = "exact",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Annotated[
        int | None, typer.Option(help="Worker threads. Default: one a core.")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(help="For residual states, such as 1G. Default: what is free, at most 2 GiB."),
    ] = None,
    as_json: opt.Json = False,
    output: opt.Output = None,
) -> None:
    """Measure how far later blocks absorb or amplify each block's damage, and allocate sparsity."""
    wanted = opt.request(
        base, base_option, sparsity, correct, strength, max_correction, correction_scale, lo, hi,
        compat,
    )  # fmt: skip
    plan = Perturbation(
        perturbation,  # type: ignore[arg-type]  # checked by Perturbation
        opt.numbers(eta, "eta") if eta is not None else (0.01,),
        noise_scale,  # type: ignore[arg-type]
        noise_shape,  # type: ignore[arg-type]
        norm,  # type: ignore[arg-type]
        sink,  # type: ignore[arg-type]
        draws,
        seed,
    )
    opened = read_model(model, config)
    inputs = {"MODEL": model, "--text": text, "--tokens": tokens, "--config": config}
    checked_output(output, inputs | {file.path.name: file.path for file in opened.files})
    ids = model_tokens(opened, text, tokens, samples, seq_len, seed)
    with progress_bar("scoring") as progress:
        scores = score(
            opened,
            ids,
            plan,
            wanted,
            dtype=dtype,
            threads=threads,
            memory=memory,
            progress=progress,
        )
    allocations = tuple(allocate(scores, wanted, which) for which in range(len(scores.sweep)))
    result = document(scores, allocations)
    if output is not None:
        write_json(output, result)
    opt.show(result if as_json else table(scores, allocations, style()))
