"""`refimpl case make`: a case for any model."""

from pathlib import Path
from typing import Annotated

import typer

from refimpl.cli import options as opt
from refimpl.cli.groups import (
    NoiseScaleOption,
    NoiseShapeOption,
    NormOption,
    SinkOption,
    Source,
    with_groups,
)
from refimpl.cli.options import option
from refimpl.loading.checkpoint import read_model
from refimpl.oracle.steps import Recipe
from refimpl.tokens.model_tokens import model_tokens

RECIPE = "Recipe"  # heading in --help
DEFAULT = Recipe()

app = typer.Typer(help="Cases for `refimpl check`.", no_args_is_help=True)


@app.command("make")
@with_groups
def make(
    model: opt.ModelPath,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="CASE",
            readable=False,
            help="The case's folder; it refers to the model by a relative path.",
        ),
    ],
    *,
    config: opt.Config = None,
    source: Source,
    eta: Annotated[
        float, option("Size of the noise as a fraction of the state's norm.", "X", RECIPE)
    ] = DEFAULT.eta,
    noise_scale: NoiseScaleOption = "token",
    noise_shape: NoiseShapeOption = "isotropic",
    norm: NormOption = "token",
    sink: SinkOption = "include",
    seed: Annotated[int, option("Of the noise.", "N", RECIPE)] = DEFAULT.seed,
    sparsity: Annotated[float, option("Over all weights.", "S", RECIPE)] = DEFAULT.sparsity,
    nm: Annotated[str, option("Pattern; empty for none.", "N:M", RECIPE)] = DEFAULT.pattern,
    shown: Annotated[
        list[int] | None,
        option("Block whose scores and weights are steps, too. Default: 0.", "N", RECIPE),
    ] = None,
) -> None:
    """Compute every step of the method on a model, in float64, for others to be held against."""
    from refimpl.oracle.case import make_case  # not for --help

    opened = read_model(model, config)
    tokens = model_tokens(opened, source.text, source.ids, source.samples, source.seq_len)
    recipe = Recipe(
        eta, noise_scale, noise_shape, norm, sink, seed, sparsity,
        pattern=nm, shown=tuple(shown or DEFAULT.shown),
    )  # fmt: skip
    made = make_case(opened, tokens, recipe, output)
    print(f"{made.folder}: {len(made.expected):,} steps of {opened.name}, {tokens.source}")
