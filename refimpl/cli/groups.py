"""Groups of options that several commands share, each made into one value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

from refimpl.allocation.request import Request
from refimpl.cli.options import option
from refimpl.cli.running import LongRun as LongRun
from refimpl.cli.running import Running as Running
from refimpl.cli.running import long_run, running
from refimpl.errors import RefimplError
from refimpl.method.allocation import Compat
from refimpl.method.correction import MAX_CORRECTION, STRENGTH, Scale
from refimpl.method.perturbation import Kind, NoiseScale, NoiseShape, Norm, Perturbation, Sink

TOKENS, PERTURBATION = "Tokens", "Perturbation"  # headings in --help

NoiseScaleOption = Annotated[
    NoiseScale, option("Noise of this size on every token, or on all.", panel=PERTURBATION)
]
NoiseShapeOption = Annotated[
    NoiseShape, option("The same noise in all channels, or as each one varies.", panel=PERTURBATION)
]
NormOption = Annotated[
    Norm, option("Drift per token and averaged, or of all at once.", panel=PERTURBATION)
]
SinkOption = Annotated[
    Sink, option("Whether tokens of more than 20 times the median norm count.", panel=PERTURBATION)
]


@dataclass(frozen=True)
class Source:
    """Which tokens a model is given, as `tokens.model_tokens.model_tokens` takes it."""

    text: Path | None
    ids: Path | None
    samples: int | None
    seq_len: int | None


TextOption = Annotated[
    Path | None,
    option(
        "Text (UTF-8) to cut samples from, spread over all of it, by the tokenizer.json in the "
        "model's folder.",
        "FILE",
        TOKENS,
    ),
]
TokensOption = Annotated[
    Path | None,
    option(
        "Token ids, .npy or .jsonl, used as they are. With neither text nor ids, ids are drawn "
        "at random.",
        "FILE",
        TOKENS,
    ),
]


def source(
    *,
    text: TextOption = None,
    tokens: TokensOption = None,
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
) -> Source:
    """The tokens that the options ask for."""
    return Source(text, tokens, samples, seq_len)


def perturbation_plan(
    *,
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
    noise_scale: NoiseScaleOption = "token",
    noise_shape: NoiseShapeOption = "isotropic",
    norm: NormOption = "token",
    sink: SinkOption = "include",
    draws: Annotated[
        int, option("Noise draws per sample and block, 1 or more.", "N", PERTURBATION)
    ] = 1,
    seed: Annotated[
        int, option("Seed of everything that is drawn at random, 0 or more.", "N", PERTURBATION)
    ] = 0,
    subset: Annotated[
        int | None,
        option(
            "Perturb only K blocks for each sample and draw, chosen at random and evenly spread. "
            "Default: all.",
            "K",
            PERTURBATION,
        ),
    ] = None,
) -> Perturbation:
    """The perturbation that the options ask for."""
    etas = numbers(eta, "eta")
    return Perturbation(
        perturbation, etas, noise_scale, noise_shape, norm, sink, draws, seed, subset
    )


def request(
    *,
    base: Annotated[
        str,
        option(
            "Allocation to start from: uniform, owl, alphapruning, dlp, atp, or a JSON or CSV file "
            "with a sparsity per block or per linear.",
            "NAME|FILE",
        ),
    ] = "uniform",
    base_option: Annotated[
        list[str] | None,
        option(
            "Option of the base, may be repeated. owl: m=5, lam=0.08; alphapruning: epsilon=0.3, "
            "fit=peak or mid, xmin=shipped or intended, unit=block or linear; dlp: a=0.15, "
            "statistic=mean or median; atp: beta, which has no default.",
            "NAME=VALUE",
        ),
    ] = None,
    sparsity: Annotated[
        float, option("Fraction to prune of all prunable weights together, 0 to 1.", "FRACTION")
    ] = 0.7,
    correct: Annotated[
        Literal["absorption", "arrival", "divergence", "none"] | None,
        option(
            "absorption, arrival, divergence or none; arrival and divergence need --perturbation "
            "pruning. Default: absorption; with --compat peer, none.",
            "NAME",
        ),
    ] = None,
    strength: Annotated[
        float, option("Fraction pruned per unit of the correction (provisional).", "X")
    ] = STRENGTH,
    max_correction: Annotated[
        float, option("Greatest change of a block's fraction, 0 to 1 (provisional).", "FRACTION")
    ] = MAX_CORRECTION,
    correction_scale: Annotated[
        Scale, option("raw; or max: divide the correction by its greatest size.")
    ] = "raw",
    lo: Annotated[float, option("Least fraction of any block or linear.", "FRACTION")] = 0.0,
    hi: Annotated[float, option("Greatest fraction of any block or linear.", "FRACTION")] = 1.0,
    compat: Annotated[
        Compat,
        option(
            "exact; or peer: as the code of each method's authors does it, without a correction."
        ),
    ] = "exact",
) -> Request:
    """The allocation that the options ask for."""
    options: dict[str, float | str] = {}
    for text in base_option or []:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name or not value:
            raise RefimplError(
                f"base option {text!r}", "NAME=VALUE", "use for example --base-option m=5"
            )
        if name in options:
            raise RefimplError(
                f"base option {name} given twice", "each option once", "remove one of them"
            )
        options[name] = value
    return Request(
        base,
        options,
        sparsity,
        "default" if correct is None else None if correct == "none" else correct,
        strength,
        max_correction,
        correction_scale,
        lo,
        hi,
        compat,
    )


GROUPS: Mapping[Any, Callable[..., Any]] = {
    Source: source,
    Perturbation: perturbation_plan,
    Request: request,
    Running: running,
    LongRun: long_run,
}


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of every group that one of its parameters is annotated with.

    Args:
        command: A function with keyword-only parameters of the types in `GROUPS`.

    Returns:
        The same command with those options in the places of these parameters.
    """
    own = signature(command)
    grouped = {
        name: GROUPS[parameter.annotation]
        for name, parameter in own.parameters.items()
        if parameter.annotation in GROUPS
    }

    @wraps(command)
    def whole(**given: Any) -> None:
        made = {
            name: group(**{option: given.pop(option) for option in signature(group).parameters})
            for name, group in grouped.items()
        }
        command(**given, **made)

    parameters = [
        new
        for name, parameter in own.parameters.items()
        for new in (
            signature(grouped[name]).parameters.values() if name in grouped else [parameter]
        )
    ]
    whole.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return whole


def names_of(*kinds: Any) -> tuple[str, ...]:
    """Names of the parameters in some groups."""
    return tuple(name for kind in kinds for name in signature(GROUPS[kind]).parameters)


def numbers(text: str, name: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RefimplError(
            f"{name} {text!r}",
            "a number, or numbers separated by commas",
            f"use for example --{name} 0.01",
        ) from None
