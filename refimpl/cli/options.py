"""How options are made, one by one or for all fields of a dataclass, and how they are checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, fields, replace
from functools import wraps
from inspect import Parameter, cleandoc, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer
from typer.models import ArgumentInfo

from refimpl.cli import terminal
from refimpl.cli.interruption import interruptible
from refimpl.cli.outputs import OutputKind, check_outputs
from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import WHOLE

# What people use: under "Options" in --help; the other options of a group are advanced.
COMMON = (
    *("text", "base", "sparsity", "correct", "method", "nm", "measure", "windows", "choices"),
    *("estimate", "graph", "against", "tolerance", "experiment", "weights", "outputs"),
    *("only", "sample_tokens"),
)


OUTPUT = "Advanced: Output"  # heading in --help


def plain(text: str) -> str:
    """A text that is not read as markup, so that [onnx] is shown."""
    return text.replace("[", r"\[")


def prose(docstring: str) -> str:
    """The paragraphs of a docstring, each on one line."""
    paragraphs = cleandoc(docstring).split("\n\n")
    return "\n\n".join(plain(" ".join(paragraph.split())) for paragraph in paragraphs)


def examples(*lines: str) -> str:
    """What stands below the options of a command's --help."""
    return "\n\n".join(map(plain, ("Examples:", *lines)))


def option(help: str, metavar: str | None = None, panel: str | None = None, *names: str) -> Any:
    """An option under a heading of --help; typer does not check whether it can read a file."""
    return typer.Option(
        *names,
        help=plain(help),
        metavar=metavar,
        rich_help_panel=panel,
        readable=False,
        case_sensitive=False,
    )


def flag(help: str, panel: str | None, *names: str) -> Any:
    """An option without a value."""
    return option(help, "", panel, *names)


def argument(metavar: str, help: str, found: Callable[[Path], Path] | None = None) -> Any:
    """An argument that names a file or a folder; typer does not check whether it can read it.

    `found` says which path a value stands for.
    """
    return typer.Argument(metavar=metavar, readable=False, help=plain(help), callback=found)


def output(metavar: str, help: str) -> Any:
    """The option -o; `OutputKind` stands beside it."""
    return option(help, metavar, None, "-o", "--output")


ModelPath = Annotated[
    Path,
    argument(
        "MODEL",
        "A .safetensors or .gguf file, an index of shards, or a folder of them; or the id of a "
        "model in the Hugging Face cache, ORG/NAME[@REVISION][:FILE.gguf].",
    ),
]
ConfigOption = Annotated[
    Path | None,
    option(
        "config.json, if it is neither beside the weights nor stored in them.",
        "FILE",
        "Advanced: Model",
    ),
]
DownloadOption = Annotated[
    bool,
    flag(
        "If the model is an id, download its files that the cache does not hold. Default: use the "
        "cache alone.",
        "Advanced: Model",
        "--download",
    ),
]
JsonOption = Annotated[
    bool, flag("Print JSON instead of the table: the same as -o writes.", OUTPUT, "--json")
]
QuietOption = Annotated[bool, flag("Show no progress.", OUTPUT, "-q", "--quiet")]
VerboseOption = Annotated[
    bool, flag("Print all settings, time and memory, too.", None, "-v", "--verbose")
]
OutputOption = Annotated[
    Path | None,
    output("FILE", "Also write the JSON to this file, which appears whole or not at all."),
    OutputKind.FILE,
]
ForceOption = Annotated[bool, flag("Replace an existing output.", OUTPUT, "--force")]


@dataclass(frozen=True)
class FieldOption:
    """The option that fills one field of a dataclass; `read` converts its value to the field's.

    Name, type and default are given if they differ from the field's.
    """

    help: str
    metavar: str | None = None
    name: str | None = None
    type: Any = None
    default: Any = ...
    read: Callable[[Any], Any] = lambda value: value
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class OptionGroup:
    """Options that fill a dataclass; types and defaults are those of its fields.

    Args:
        target: The dataclass.
        panel: Heading in --help.
        options: By field, in the order of --help; other fields keep their defaults.
        changes: Whether the options have no defaults, and those in the command line fill a
            dictionary of fields in place of the dataclass.
        opened: What makes the dataclass in place of it, and ends when the command does.
    """

    target: type[Any]
    panel: str
    options: Mapping[str, FieldOption]
    changes: bool = False
    opened: Callable[..., AbstractContextManager[Any]] | None = None

    @classmethod
    def of(cls, target: type[Any], panel: str) -> "OptionGroup":
        """The options of a dataclass whose fields are made by `field_option`."""
        return cls(target, panel, {x.name: x.metadata["option"] for x in fields(target)})

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the options, as parameters of a command."""
        return tuple(option.name or key for key, option in self.options.items())

    def only(self, *fields: str) -> "OptionGroup":
        """The same group with the options of these fields alone."""
        return replace(self, options={key: self.options[key] for key in fields})

    def parameters(self) -> Iterator[Parameter]:
        """The options as parameters of a command."""
        types = get_type_hints(self.target)
        defaults = {x.name: x.default for x in fields(self.target)}
        for name, (key, spec) in zip(self.names, self.options.items(), strict=True):
            value_type = spec.type or types[key]
            words = []
            if value_type is bool or spec.aliases:  # and no --no-...
                words = [f"--{name.replace('_', '-')}"]
            help = spec.help
            if self.changes:
                value_type, help = value_type | None, help.partition(" Default: ")[0]
            panel = None if key in COMMON else f"Advanced: {self.panel}"
            metavar = "" if value_type is bool else spec.metavar
            info = option(help, metavar, panel, *words, *spec.aliases)
            default = defaults[key] if spec.default is ... else spec.default
            default = None if self.changes else default
            annotation: Any = Annotated[value_type, info]
            yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def take(self, values: dict[str, Any], ends: ExitStack) -> Any:
        """Remove the options of the group from the values of a command, and fill the dataclass."""
        specs = [
            (values.pop(name), *spec)
            for name, spec in zip(self.names, self.options.items(), strict=True)
        ]
        if self.changes:
            return {key: spec.read(value) for value, key, spec in specs if value not in (None, [])}
        made = {key: spec.read(value) for value, key, spec in specs}
        return ends.enter_context(self.opened(**made)) if self.opened else self.target(**made)


def field_option(default: Any, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A field of a dataclass, with its option; more is of `FieldOption`."""
    return field(default=default, metadata={"option": FieldOption(help, metavar, **more)})


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter annotated with an `OptionGroup` by the options of that group.

    Before the command runs, its outputs are checked against its inputs: a parameter that is
    `OutputKind`, against every other one that is a path. It gets -q; if it writes files, --force.
    """
    own = signature(command)
    groups = {
        name: group
        for name, parameter in own.parameters.items()
        for group in get_args(parameter.annotation)[1:]
        if isinstance(group, OptionGroup)
    }
    parameters = {
        each.name: each
        for name, parameter in own.parameters.items()
        for each in (groups[name].parameters() if name in groups else [parameter])
    }
    kinds = {name: _kind(parameter) for name, parameter in parameters.items()}
    outputs = {name: kind for name, kind in kinds.items() if isinstance(kind, OutputKind)}
    inputs = {name: kind for name, kind in kinds.items() if isinstance(kind, str)}
    more = {"force": ForceOption} if OutputKind.FILE in outputs.values() else {}
    more["quiet"] = QuietOption

    @wraps(command)
    def ungrouped(**values: Any) -> None:
        for name, value in values.items():
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, int) and not -WHOLE <= number < WHOLE:
                    raise RefimplError(
                        f"--{name.replace('_', '-')} {str(number)[:40]}",
                        "an integer of at most 64 bits",
                        "use a smaller number",
                    )
        terminal.quiet |= values.pop("quiet")
        check_outputs(values, inputs, outputs)
        paths = [Path(values[name]) for name in outputs if values[name] is not None]
        with interruptible(paths, dict(values)), ExitStack() as ends:
            if "force" in more:
                del values["force"]
            filled = {name: group.take(values, ends) for name, group in groups.items()}
            command(**values, **filled)

    added = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in more.items()
    ]
    ungrouped.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*parameters.values(), *added]
    )
    return ungrouped


def _kind(parameter: Parameter) -> OutputKind | str | None:
    """What a parameter writes; or the name, for messages, of what it reads; None if neither."""
    hint, *marks = get_args(parameter.annotation) or (parameter.annotation,)
    if Path not in (hint, *get_args(hint)):
        return None
    if written := [mark for mark in marks if isinstance(mark, OutputKind)]:
        return written[0]
    if metavars := [mark.metavar for mark in marks if isinstance(mark, ArgumentInfo)]:
        return str(metavars[0])
    return f"--{parameter.name.replace('_', '-')}"


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands in the command line."""
    origin = context.get_parameter_source(name)
    return origin is not None and origin.name != "DEFAULT"


def refuse(context: typer.Context, names: Iterable[str], other: str, expected: str) -> None:
    """Refuse options that have no meaning beside another option."""
    for name in names:
        if is_given(context, name):
            word = f"--{name.replace('_', '-')}"
            raise RefimplError(f"{word} with {other}", expected, f"omit {word}")
