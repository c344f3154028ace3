"""Options that several commands share, and how their words become values."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from refimpl.errors import RefimplError
from refimpl.jobs.request import Request

Base = Annotated[
    str,
    typer.Option(help="uniform, owl, alphapruning, dlp, atp, or a JSON or CSV FILE."),
]
BaseOption = Annotated[
    list[str] | None,
    typer.Option(help="An option of the base, such as m=5 or lam=0.08; may be repeated."),
]
Sparsity = Annotated[float, typer.Option(help="Target over all prunable weights, 0 to 1.")]
Correct = Annotated[
    str | None,
    typer.Option(
        help="absorption, arrival, divergence, or none. Default: absorption; none with "
        "--compat peer."
    ),
]
Strength = Annotated[float, typer.Option(help="Sparsity per unit of the correction (provisional).")]
MaxCorrection = Annotated[float, typer.Option(help="Greatest change of a block (provisional).")]
CorrectionScale = Annotated[str, typer.Option(help="raw, or max: the greatest |Delta| is 1.")]
Lo = Annotated[float, typer.Option(help="Least sparsity of a unit.")]
Hi = Annotated[float, typer.Option(help="Greatest sparsity of a unit.")]
Compat = Annotated[str, typer.Option(help="exact, or peer: the shipped code of the base.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the JSON to a file.")]


def request(
    base: str,
    base_option: list[str] | None,
    sparsity: float,
    correct: str | None,
    strength: float,
    max_correction: float,
    correction_scale: str,
    lo: float,
    hi: float,
    compat: str,
) -> Request:
    """The allocation that the options ask for."""
    options: dict[str, float | str] = {}
    for text in base_option or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise RefimplError(
                f"base option {text!r}", "NAME=VALUE", "use for example --base-option m=5"
            )
        options[name.strip()] = value.strip()
    wanted = {None: "default", "none": None}.get(correct, correct)
    return Request(
        base,
        options,
        sparsity,
        wanted,  # type: ignore[arg-type]  # checked by Request
        strength,
        max_correction,
        correction_scale,  # type: ignore[arg-type]
        lo,
        hi,
        compat,  # type: ignore[arg-type]
    )


def numbers(text: str, name: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RefimplError(
            f"{name} {text!r}", "a number, or numbers separated by commas", "correct it"
        ) from None


def show(result: str | dict[str, Any]) -> None:
    """Print a table, or a document as JSON, to stdout."""
    if isinstance(result, str):
        typer.echo(result, nl=False)
    else:
        typer.echo(json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False))
