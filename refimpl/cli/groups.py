"""The groups of options that several commands share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from refimpl.allocation.request import Request
from refimpl.arguments import common_option, option, spelled
from refimpl.bases.base import Base, bases
from refimpl.cli import terminal
from refimpl.cli.options import Group, argument, is_given, refuse
from refimpl.cli.outputs import OutputKind, output_option
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import Noise, Perturbation, Probes
from refimpl.model.model import Model
from refimpl.pruners.decision import PrunerOptions
from refimpl.pruners.pruner import pruners
from refimpl.running.executors import open_executor
from refimpl.running.settings import Settings

ModelPath = Annotated[
    Path,
    argument(
        "MODEL",
        "A .safetensors or .gguf file, an index of shards, or a folder of them; or the id of a "
        "model in the Hugging Face cache, ORG/NAME[@REVISION].",
    ),
]


@dataclass(frozen=True)
class ModelOptions:
    """Where a model's files are, besides its path."""

    config: Path | None = option(
        None, "config.json, if it is neither beside the weights nor stored in them.", "FILE"
    )
    download: bool = option(
        False, "If the model is an id, download its files that the cache lacks."
    )

    def read(self, path: Path) -> Model:
        """The model."""
        return read_model(path, self.config, download=self.download)


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
class TableOptions(OutputOptions):
    """What is printed of scores, and written."""

    verbose: bool = common_option(False, "Print all settings, time and memory, too.", flags=("-v",))


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
NOISE = ("noise_scale", "noise_shape", "noise_norm", "norm", "sink")  # of one perturbed state
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
TableOutput = Annotated[TableOptions, Group("Output")]
Plan = Annotated[Noise | Probes, Group("Perturbation", says={"probe_pruner": PRUNERS})]
PAPERS = {"correct": "Default: absorption; none with another base than uniform or compat peer."}
Shown = Annotated[Request, Group("Allocation", says=BASES | PAPERS)]
Running = Annotated[Settings, Group("Running", opened=_opened)]
MATRICES = "Default: SparseGPT's matrices count, too; the free memory, at most 2 GiB and these."
PruningRuns = Annotated[Settings, Group("Running", opened=_opened, says={"memory": MATRICES})]


def checked_plan(
    context: typer.Context, options: Any, wanted: Request
) -> tuple[Perturbation, Request]:
    """The perturbation that a command needs, and the request, with noise without a correction."""
    pruning = options.pop("kind") == "pruning"
    names = [{x.name for x in fields(kind)} for kind in (Noise, Probes)]
    of_noise, of_probes = (
        [spelled(x).strip("- =") for x in fields(kind) if x.name not in other]
        for kind, other in zip((Noise, Probes), names[::-1], strict=True)
    )
    noise = any(is_given(context, word) for word in ("perturbation", *of_noise))
    given = is_given(context, "correct") or is_given(context, "strength")
    if noise and not pruning and wanted.correct == "divergence" and not given:
        wanted = replace(wanted, correct=None)
    if wanted.needs_pruning and not is_given(context, "perturbation"):
        pruning = True
    refuse_limits(context, wanted)
    plans = [
        kind(**{x: value for x, value in options.items() if x in of_kind})
        for kind, of_kind in zip((Noise, Probes), names, strict=True)
    ]
    plan = plans[pruning]
    own = "no options of noise: pruning is not random, and sets the size of the error itself"
    expected = own if pruning else "--perturbation pruning, which probes belong to"
    refuse(context, of_noise if pruning else of_probes, f"--perturbation {plan.kind}", expected)
    if isinstance(plan, Probes):
        refuse_damping(context, plan.pruner, "probe damping", "--probe pruner=")
    return wanted.perturbation(plan), wanted


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
