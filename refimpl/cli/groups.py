"""The groups of options that several commands share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from refimpl.allocation.request import Noise, Perturbation, Probes, Request
from refimpl.arguments import AtLeastZero, common_option, option, same_option
from refimpl.bases.base import bases
from refimpl.cli import terminal
from refimpl.cli.options import (
    Group,
    OutputKind,
    argument,
    is_given,
    output_option,
    refuse,
)
from refimpl.loading.checkpoint import read_model
from refimpl.method.perturbation import NoiseNorm, Sink
from refimpl.model.model import Model
from refimpl.pruners.pruner import pruners

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
        False, "If it is an id, download the files that are not in the cache."
    )

    def read(self, path: Path) -> Model:
        """The model."""
        return read_model(path, download=self.download)


@dataclass(frozen=True)
class JsonOptions:
    """What is printed."""

    json: bool = common_option(False, "Print JSON instead of the table.")


@dataclass(frozen=True)
class ForceOptions:
    """Whether an output may exist."""

    force: bool = option(False, "Replace an existing output.")


@dataclass(frozen=True)
class OutputOptions(ForceOptions, JsonOptions):
    """What is printed, and written."""

    output: Path | None = output_option(
        None, "Also write the JSON to this file.", "FILE", OutputKind.FILE
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
        "Token ids (.npy), used unchanged; or the word random, which draws them.",
        "FILE",
        name="tokens",
    )
    samples: int | None = option(None, "Number of samples.", "N")
    seq_len: int | None = option(None, "Tokens per sample, including BOS.", "N")


def source_group(
    samples: int, seq_len: int, otherwise: str = "ids are drawn at random"
) -> Group:
    """The options of `Source`, with these defaults."""
    longest = "or the model's longest sequence if that is shorter; for rows of ids, their width"
    says = {
        "ids": f"Without --text and --tokens, {otherwise}.",
        "samples": f"Default: {samples}; for rows of ids, all rows.",
        "seq_len": f"Default: {seq_len}, {longest}.",
    }
    return Group("Tokens", says=says)


OWN_TEXT = "a text that comes with refimpl is used"
PRUNERS = f"Names: {', '.join(pruners())}."
BASE_NAMES = {"base": f"Names: {', '.join(bases())}."}
CHANGES = Group("Allocation", says=BASE_NAMES, changes=True)
Where = Annotated[ModelOptions, Group("Model")]
JsonFlag = Annotated[JsonOptions, Group("Output")]
Outputs = Annotated[OutputOptions, Group("Output")]
MATRICES = {
    "memory": "Default: the free memory, at most 2 GiB plus SparseGPT's matrices."
}


@dataclass(frozen=True)
class PerturbationOptions:
    """How states are perturbed: options of `Noise` and of `Probes`."""

    kind: Literal["gaussian", "pruning"] = same_option(Noise, "kind")
    eta: tuple[float, ...] = same_option(Noise, "eta")
    sink: Sink = same_option(Noise, "sink")
    seed: AtLeastZero = same_option(Noise, "seed")
    noise_norm: NoiseNorm = same_option(Noise, "noise_norm")
    pruner: str = same_option(Probes, "pruner")

    def plan(
        self, context: typer.Context, wanted: Request, correct: bool
    ) -> tuple[Perturbation, Request]:
        """The perturbation of a command, and its request; whether a correction was asked for.

        The correction decides the perturbation where only it is given, and the other way round:
        noise and absorption, pruning and divergence. An option of the other one is refused.
        """
        kind, of_noise = self.kind, ("eta", "sink", "noise_norm")
        if not is_given(context, "perturbation"):
            kind = (
                "gaussian" if correct and wanted.correct == "absorption" else "pruning"
            )
        elif kind == "gaussian" and not correct:
            wanted = replace(wanted, correct=None)
        others = of_noise if kind == "pruning" else ("pruner",)
        other = f"--perturbation {'gaussian' if kind == 'pruning' else 'pruning'}"
        refuse(context, others, f"--perturbation {kind}", other, f"add {other}, or ")
        if kind == "pruning":
            return wanted.perturbation(
                Probes(seed=self.seed, pruner=self.pruner)
            ), wanted
        noise = {name: getattr(self, name) for name in of_noise}
        return wanted.perturbation(Noise(seed=self.seed, **noise)), wanted


Plan = Annotated[PerturbationOptions, Group("Perturbation", says={"pruner": PRUNERS})]
