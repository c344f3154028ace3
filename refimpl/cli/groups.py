"""The groups of options that several commands share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import typer

from refimpl.allocation.request import Request
from refimpl.bases.base import Base, bases
from refimpl.cli.options import FieldOption, OptionGroup, is_given, refuse
from refimpl.errors import RefimplError
from refimpl.method.perturbation import Perturbation
from refimpl.pruners.decision import Pruner
from refimpl.pruners.method import methods
from refimpl.pruners.wanda import WANDA
from refimpl.running.executors import open_executor
from refimpl.running.settings import Settings
from refimpl.tokens.samples import SAMPLES, SCORED, SEQ_LEN

RUNNING = "Running"  # heading in --help
NOISE = ("noise_scale", "noise_shape", "noise_norm", "norm", "sink")  # of one perturbed state


@dataclass(frozen=True)
class Source:
    """The tokens that a command asks for; None stands for the default of the command."""

    text: Path | None = None
    ids: Path | None = None
    samples: int | None = None
    seq_len: int | None = None


def source_options(
    samples: str, seq_len: str, default: str = "ids are drawn at random"
) -> OptionGroup:
    """The options of `Source`, with these texts for the defaults."""
    return OptionGroup(
        Source,
        "Tokens",
        {
            "text": FieldOption(
                "UTF-8 text. Samples are cut from places spread over all of it, with the "
                "tokenizer.json in the model's folder.",
                "FILE",
            ),
            "ids": FieldOption(
                "Token ids (.npy or .jsonl), used unchanged, or the word random to draw them. "
                f"Without --text and --tokens, {default}.",
                "FILE",
                name="tokens",
            ),
            "samples": FieldOption(f"Number of samples. Default: {samples}.", "N"),
            "seq_len": FieldOption(f"Tokens per sample, including BOS. Default: {seq_len}.", "N"),
        },
    )


def defaults(samples: int, seq_len: int) -> tuple[str, str]:
    """The defaults of --samples and --seq-len in words."""
    return (
        f"{samples}; for rows of ids, all rows",
        f"{seq_len}, or the model's longest sequence if that is shorter; for rows of ids, their "
        "width",
    )


OWN_TEXT = "a text that comes with refimpl is used"
SOURCE = source_options(*defaults(SAMPLES, SEQ_LEN))
CALIBRATION = source_options(*defaults(SAMPLES, SEQ_LEN), OWN_TEXT)
SCORING = source_options(*defaults(*SCORED), OWN_TEXT)


def numbers(text: str) -> tuple[float, ...]:
    """The values of --eta, separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise RefimplError(
            f"eta {text!r}",
            "a number, or numbers separated by commas",
            "use for example --eta 0.01",
        ) from None


def strength(text: str | None) -> float | str:
    """The value of --strength: a number, or a word."""
    try:
        return "default" if text is None else text if text == "measured" else float(text)
    except ValueError:
        raise RefimplError(
            f"strength {text!r}", "a number, or measured", "use for example --strength measured"
        ) from None


def fraction(text: str) -> float:
    """A number, or a percentage: "0.5", "50%"."""
    try:
        return float(Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1))
    except ArithmeticError:
        raise RefimplError(
            f"sparsity {text!r}", "a fraction from 0 to 1, or a percentage", "use --sparsity 0.5"
        ) from None


PERTURBATION = OptionGroup(
    Perturbation,
    "Perturbation",
    {
        "eta": FieldOption(
            "Size of the noise as a fraction of the state's norm, above 0. Several values, "
            "separated by commas (1e-4,1e-2,1), are measured in one run.",
            "X[,X...]",
            type=str,
            default="0.01",
            read=numbers,
        ),
        "kind": FieldOption(
            "gaussian adds noise to a block's output; pruning prunes the block itself, "
            "to its sparsity in the base allocation. Default: pruning with --correct arrival or "
            "divergence, else gaussian.",
            name="perturbation",
        ),
        "noise_scale": FieldOption("Scale the noise per token, or once per sequence."),
        "noise_shape": FieldOption(
            "isotropic: the same noise in all channels. channel: in proportion to each channel's "
            "standard deviation."
        ),
        "noise_norm": FieldOption(
            "exact: the noise itself has the length eta ||h||. expected: it is drawn so that its "
            "expected square has, for isotropic noise N(0, eta^2 ||h||^2 / D)."
        ),
        "norm": FieldOption("Measure drift per token and average it, or once per sequence."),
        "sink": FieldOption(
            "Include or exclude tokens whose norm is more than 20 times the median."
        ),
        "draws": FieldOption("Noise draws per sample and block, 1 or more.", "N"),
        "seed": FieldOption("Seed of all random numbers, 0 or more.", "N"),
        "subset": FieldOption(
            "Perturb only K blocks per sample and draw, chosen at random and evenly spread. "
            "Default: all blocks.",
            "K",
        ),
        "probe_delta": FieldOption(
            "With --perturbation pruning, also prune each unit this much less and this much more, "
            "to measure how its error grows. Default: 0.1 with --strength measured.",
            "FRACTION",
        ),
        "probe_pruner": FieldOption(
            f"What --perturbation pruning prunes with: {', '.join(methods())}. Default: "
            f"{WANDA.name}; of prune, its --method.",
            "NAME",
        ),
        "probe_damping": FieldOption(
            "Damping of the pruner's Hessian in the probes, as a fraction of its mean diagonal. "
            "Default: 0.01; of prune, its --damping.",
            "X",
        ),
        "units": FieldOption(
            "What the probes prune alone, and what the budget is divided over: blocks, or each "
            "linear."
        ),
        "probe_samples": FieldOption(
            "With --perturbation pruning, perturb only the first N samples; which weights to prune "
            "is decided on all. Default: 2 with --strength measured, else all.",
            "N",
        ),
    },
)


def base_options(texts: Sequence[str] | None) -> dict[str, float | str]:
    """The values of --base-option by name."""
    options: dict[str, float | str] = {}
    for text in texts or []:
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
    return options


def usual(base: Base) -> str:
    """The options of a base, with their defaults; of words, the default first."""
    texts = [
        f"{name}={' or '.join(option.words) or option.default}"
        if option.default is not None
        else f"{name}, which has no default"
        for name, option in base.options.items()
    ]
    return (texts and f"{base.name}: {', '.join(texts)}") or ""


BASES = bases().values()
REQUEST = OptionGroup(
    Request,
    "Allocation",
    {
        "base": FieldOption(
            f"Base allocation: {', '.join(bases())}, or a JSON or CSV file with a sparsity per "
            "block or per linear.",
            "NAME|FILE",
            type=str,
        ),
        "options": FieldOption(
            f"Option of the base; may be repeated. {'; '.join(filter(None, map(usual, BASES)))}.",
            "NAME=VALUE",
            name="base_option",
            type=list[str] | None,
            default=None,
            read=base_options,
        ),
        "sparsity": FieldOption(
            "Fraction of all prunable weights to prune, 0 to 1, or a percentage such as 50%. "
            "Default: 0.7; prune needs it, or --nm or --allocation.",
            "FRACTION",
            type=str | None,
            default=None,
            read=lambda text: fraction("0.7" if text is None else text),
        ),
        "correct": FieldOption(
            "absorption, arrival, divergence or none. Default: absorption, in prune divergence, or "
            "none with --compat peer.",
            "NAME",
            type=Literal["absorption", "arrival", "divergence", "none"] | None,
            default=None,
            read=lambda name: {None: "default", "none": None}.get(name, name),
        ),
        "strength": FieldOption(
            "Change of a block's sparsity per unit of the correction; measured: equal marginal "
            "errors, from probes at three sparsities. Default: measured for arrival and "
            "divergence, 0.05 (provisional) for absorption.",
            "X|measured",
            type=str | None,
            default=None,
            read=strength,
        ),
        "max_correction": FieldOption(
            "Largest change of a block's sparsity, 0 to 1 (provisional default).", "FRACTION"
        ),
        "correction_scale": FieldOption(
            "raw: use the correction unchanged. max: divide it by its largest absolute value."
        ),
        "kappa": FieldOption(
            "With --strength measured: one growth rate of the error for all blocks, or each its "
            "own."
        ),
        "lo": FieldOption("Smallest sparsity of any block or linear.", "FRACTION"),
        "hi": FieldOption("Largest sparsity of any block or linear.", "FRACTION"),
        "compat": FieldOption(
            "exact follows the formula of each base; peer follows the code of its authors, without "
            "a correction."
        ),
    },
)


@contextmanager
def _opened(executor: str = "threads", **options: Any) -> Iterator[Settings]:
    """Settings, their executor open."""
    with open_executor(executor, options["threads"]) as opened:
        yield Settings(executor=opened, **options)


SETTINGS = OptionGroup(
    Settings,
    RUNNING,
    {
        "dtype": FieldOption(
            "Precision of the computation. float64 certifies float32.",
            type=Literal["float32", "float64"],
            default="float32",
        ),
        "threads": FieldOption(
            "Worker threads or processes, 1 or more. Default: one per core.", "N"
        ),
        "memory": FieldOption(
            "Memory for the residual states of all workers together, such as 512M or 1.5G. Results "
            "do not depend on it. Default: the free memory, at most 2 GiB.",
            "SIZE",
            type=str | None,
        ),
        "executor": FieldOption(
            "Where the work runs: threads of this process, processes on this machine, dask=ADDRESS "
            "(workers of that scheduler), or mpi (processes that mpiexec started). Results do not "
            "depend on it.",
            "WHERE",
            type=str,
            default="threads",
        ),
        "resume": FieldOption(
            "Keep the finished units beside -o after an error of the input, too. With or without "
            "it, the same command continues a stopped run."
        ),
    },
    opened=_opened,
)
IN_PROCESS = SETTINGS.only("dtype", "threads", "memory")


def checked_plan(
    context: typer.Context, plan: Perturbation, wanted: Request, pruner: Pruner | None = None
) -> Perturbation:
    """The perturbation that a command needs; options without a meaning beside it are refused.

    The probes of a command that prunes use its pruner, if no option says otherwise.
    """
    if wanted.needs_pruning and not is_given(context, "perturbation"):
        plan = replace(plan, kind="pruning")
    if wanted.measured:
        fixed = "no limit and no scale: the probes set the size of the correction"
        refuse(context, ("max_correction", "correction_scale"), "--strength measured", fixed)
    if plan.kind == "pruning":
        refuse(
            context,
            ("eta", "noise_scale", "noise_shape", "noise_norm"),
            "--perturbation pruning",
            "no options of noise: the pruning itself sets the size of the error",
        )
        if pruner is not None and not is_given(context, "probe_pruner"):
            plan = replace(plan, probe_pruner=pruner.record.name)
        if pruner is not None and not is_given(context, "probe_damping"):
            plan = replace(plan, probe_damping=pruner.damping)
    if "damping" not in plan.pruner.options:
        other = f"--probe-pruner {plan.probe_pruner}"
        damped = [
            f"--probe-pruner {name}" for name, x in methods().items() if "damping" in x.options
        ]
        refuse(context, ("probe_damping",), other, " or ".join(damped))
    return wanted.perturbation(plan)
