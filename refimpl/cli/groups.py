"""The groups of options that several commands share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from refimpl.allocation.plan import Noise, Perturbation, Probes
from refimpl.allocation.request import Request
from refimpl.arguments import common_option, option
from refimpl.bases.base import Base, bases
from refimpl.cli import terminal
from refimpl.cli.options import Group, argument, is_given, refuse
from refimpl.cli.outputs import OutputKind, output_option
from refimpl.errors import RefimplError
from refimpl.loading.checkpoint import read_model
from refimpl.model.model import Model
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import pruners
from refimpl.running.executors import open_executor
from refimpl.running.settings import Settings

ModelPath = Annotated[
    Path,
    argument(
        "MODEL",
        "A .safetensors file, an index of shards, or a folder of them; or the id of a "
        "model in the Hugging Face cache, ORG/NAME[@REVISION].",
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """Where a model's files come from."""

    download: bool = option(
        False, "If the model is an id, download its files that the cache lacks."
    )

    def read(self, path: Path) -> Model:
        """The model."""
        return read_model(path, download=self.download)


@dataclass(frozen=True)
class JsonOptions:
    """What is printed."""

    json: bool = common_option(False, "Print JSON instead of the table.")


@dataclass(frozen=True)
class OutputOptions(JsonOptions):
    """What is printed, and written."""

    output: Path | None = output_option(
        None,
        "Also write the JSON to this file, which appears whole or not at all.",
        "FILE",
        OutputKind.FILE,
    )

    def deliver(self, document: Mapping[str, Any], table: str) -> None:
        """Write the document to the output, if there is one, and print its JSON or its table."""
        terminal.deliver(document, table, self.json, self.output)


@dataclass(frozen=True)
class Source:
    """The tokens that a command asks for; None stands for the default of the command."""

    text: Path | None = common_option(
        None,
        "UTF-8 text, tokenised with the tokenizer.json in the model's folder. The samples are "
        "spread over the whole text.",
        "FILE",
    )
    ids: Path | None = option(
        None,
        "Token ids (.npy or .jsonl), used unchanged, or the word random to draw them.",
        "FILE",
        name="tokens",
    )
    samples: int | None = option(None, "Number of samples.", "N")
    seq_len: int | None = option(None, "Tokens per sample, including BOS.", "N")


def source_group(samples: int, seq_len: int, otherwise: str = "ids are drawn at random") -> Group:
    """The options of `Source`, with these defaults."""
    longest = "or the model's longest sequence if that is shorter; for rows of ids, their width"
    says = {
        "ids": f"Without --text and --tokens, {otherwise}.",
        "samples": f"Default: {samples}; for rows of ids, all rows.",
        "seq_len": f"Default: {seq_len}, {longest}.",
    }
    return Group("Tokens", says=says)


OWN_TEXT = "a text that comes with refimpl is used"


def usual(base: Base) -> str:
    """The options of a base, with their defaults; of words, the default first."""
    texts = [
        f"{name}={' or '.join(option.words) or option.default}"
        if option.default is not None
        else f"{name}, which has no default"
        for name, option in base.options.items()
    ]
    return (texts and f"{base.name}: {', '.join(texts)}") or ""


PRUNERS = f"{', '.join(pruners())}."
BASES = {
    "base": f"Names: {', '.join(bases())}.",
    "options": f"{'; '.join(filter(None, map(usual, bases().values())))}.",
}
NOISE = ("noise_norm", "sink")  # of one perturbed state
CHANGES = Group("Allocation", says=BASES, changes=True)
IN_PROCESS = ("dtype", "threads", "memory")


@contextmanager
def _opened(executor: str | None = None, **options: Any) -> Iterator[Settings]:
    """Settings, their executor open, with as many threads as it has workers."""
    if executor is None:
        yield Settings(**options)
        return
    with open_executor(executor) as (opened, workers):
        yield Settings(**options | {"executor": opened, "threads": workers})


Where = Annotated[ModelOptions, Group("Model")]
JsonFlag = Annotated[JsonOptions, Group("Output")]
Outputs = Annotated[OutputOptions, Group("Output")]
PROBED = {"pruner": PRUNERS}
Plan = Annotated[Noise | Probes, Group("Perturbation", says=PROBED)]
Running = Annotated[Settings, Group("Running", opened=_opened)]
MATRICES = "Default: the free memory, at most 2 GiB plus SparseGPT's matrices."
PruningRuns = Annotated[Settings, Group("Running", opened=_opened, says={"memory": MATRICES})]


def checked_plan(
    context: typer.Context, options: Any, wanted: Request, correct: bool
) -> tuple[Perturbation, Request]:
    """The perturbation of a command, and its request; whether a correction was asked for.

    The correction decides the perturbation where only it is given, and the other way round: noise
    and absorption, pruning and divergence. An option of the other perturbation is refused.
    """
    kind = options.pop("kind")
    if not is_given(context, "perturbation"):
        kind = "gaussian" if correct and wanted.correct == "absorption" else "pruning"
    elif kind == "gaussian" and not correct:
        wanted = replace(wanted, correct=None)
    names = {x.kind: {y.name for y in fields(x) if y.metadata} for x in (Noise, Probes)}
    for other in names.keys() - {kind}:
        for name in sorted(names[other] - names[kind]):
            if is_given(context, name):
                raise RefimplError(
                    f"{flag(name)} with --perturbation {kind}",
                    f"--perturbation {other}, which {flag(name)} belongs to",
                    f"add --perturbation {other}, or omit {flag(name)}",
                )
    of_kind = {name: value for name, value in options.items() if name in names[kind]}
    plan = Noise(**of_kind) if kind == "gaussian" else Probes(**of_kind)
    return wanted.perturbation(plan), wanted


def flag(name: str) -> str:
    """How a command spells an option."""
    return f"--{name.replace('_', '-')}"


def refuse_limits(context: typer.Context, wanted: Request) -> None:
    """Refuse the limits of a correction whose size is measured."""
    if wanted.measured and "max_correction" in context.params:
        fixed = "no limit and no scale: the probes set the size of the correction"
        refuse(context, ("max_correction", "correction_scale"), "--strength measured", fixed)


def refuse_damping(
    context: typer.Context, pruner: PrunerOptions, damping: str, spelling: str
) -> None:
    """Refuse the damping of a pruner that has none."""
    if "damping" not in pruner.options:
        damped = [spelling + name for name, x in pruners().items() if "damping" in x.options]
        refuse(context, (damping,), spelling + pruner.record.name, " or ".join(damped))
