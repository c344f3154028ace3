"""Options that several commands share, and how their words become values."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from refimpl.errors import RefimplError
from refimpl.jobs.request import BASES, Compat, Request, Scale
from refimpl.method.correction import MAX_CORRECTION, STRENGTH

ALLOCATION = "Allocation"  # heading in --help


def option(help: str, metavar: str | None = None, panel: str | None = ALLOCATION) -> Any:
    """An option under a heading of --help; whether its file can be read is seen when it is."""
    return typer.Option(help=help, metavar=metavar, rich_help_panel=panel, readable=False)


Json = Annotated[
    bool,
    typer.Option("--json", help="Print JSON, the same that -o writes, in place of the table."),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        readable=False,
        help="Write the JSON to a file as well, whole or not at all; an old one is replaced.",
    ),
]


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
        option("exact; or peer: the base as its authors' code has it, without a correction."),
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


def base_file(wanted: Request) -> Path | None:
    """The file that a custom base is read from."""
    return None if wanted.base in BASES else Path(wanted.base)


def with_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `request`, in the place of its parameter `wanted`.

    Args:
        command: A function with a keyword-only parameter `wanted`.

    Returns:
        The same command with those options, from which `wanted` is made.
    """
    own, shared = signature(command), signature(request).parameters

    @wraps(command)
    def whole(**given: Any) -> None:
        wanted = request(**{name: given.pop(name) for name in shared})
        command(**given, wanted=wanted)

    parameters = [
        new
        for name, parameter in own.parameters.items()
        for new in (shared.values() if name == "wanted" else [parameter])
    ]
    whole.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return whole


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
