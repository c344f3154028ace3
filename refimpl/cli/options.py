"""Options are fields of dataclasses: how typer reads them, and how they and outputs are checked."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields
from decimal import Decimal
from enum import Enum
from functools import wraps
from inspect import Parameter, cleandoc, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import numpy.typing as npt
import typer
from typer.models import ArgumentInfo

from refimpl.arguments import common_option, hints_of
from refimpl.bases.base import bases
from refimpl.cli import terminal
from refimpl.errors import RefimplError
from refimpl.loading.files.documents import INT64_LIMIT, parsed_json, read_file
from refimpl.loading.files.hub import local_files
from refimpl.model.ops import within_range
from refimpl.running.outputs import check_file, refuse_overlap, undo_killed

READ_BESIDE = (  # of a file of weights
    "config.json",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


class OutputKind(Enum):
    """Marks an option that names an output."""

    FILE = "file"  # replaced with --force
    FOLDER = "folder"  # which the function that writes it checks, too
    GRAPH = "graph"  # which may lie beside the weights of its model


def output_option(default: Any, help: str, metavar: str, kind: OutputKind) -> Any:
    """The option -o, which names an output."""
    return common_option(default, help, metavar, flags=("-o",), kind=kind)


def check_outputs(
    values: Mapping[str, Any],
    inputs: Mapping[str, str],
    outputs: Mapping[str, OutputKind],
) -> None:
    """Refuse, before any work, outputs that cannot be written, or would damage what is read."""
    for key, kind in outputs.items():
        if values[key] is None:
            continue
        path, read = Path(values[key]), dict(_read(values, inputs))
        if kind is not OutputKind.GRAPH:
            with suppress(
                ValueError
            ):  # also of a path without a name; the command reports it
                undo_killed(path)
        if kind is OutputKind.FILE:
            check_file(path, read, values.get("force", False))
        elif kind is OutputKind.FOLDER:
            refuse_overlap(path, read)


def _read(
    values: Mapping[str, Any], inputs: Mapping[str, str]
) -> Iterator[tuple[str, Path]]:
    """All files and folders that exist and that a command reads, by what to call them."""
    for key, name in inputs.items():
        value = values[key]
        for path in value if isinstance(value, list) else [value]:
            if path is not None:
                yield from _with_companions(name, path)
    for key in ("base", "allocation"):  # a name, or a file
        value = values.get(key)
        if value is not None and value not in bases() and os.path.exists(value):
            yield f"--{key}", Path(value)


def _with_companions(name: str, path: Path) -> Iterator[tuple[str, Path]]:
    """A file, folder or model of the hub, what is read with it, and what it refers to."""
    with suppress(RefimplError):  # the command reports it
        path, _ = local_files(path)
    if not os.path.exists(path):
        return
    yield name, path
    files = path.iterdir() if path.is_dir() else ()
    if path.name.endswith(
        (".safetensors", ".index.json", ".onnx")
    ):  # all but other documents
        files = (
            x
            for x in path.parent.iterdir()
            if x.name in READ_BESIDE or x.suffix != ".json"
        )
    yield from ((f"{name}: {other.name}", other) for other in files)
    with suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # the command refuses a damaged case
        model = parsed_json(read_file(path / "case.json"))["model"]
        inside = path / model
        yield from _with_companions(
            f"{name}: its model", inside if os.path.exists(inside) else Path(model)
        )


def unmarked(text: str) -> str:
    """A text that is not read as markup, so that [onnx] is shown."""
    return text.replace("[", r"\[")


def prose(*paragraphs: str) -> str:
    """Paragraphs of docstrings, each on one line."""
    parts = "\n\n".join(map(cleandoc, paragraphs)).split("\n\n")
    return "\n\n".join(unmarked(" ".join(paragraph.split())) for paragraph in parts)


def examples(*lines: str) -> str:
    """What stands below the options of a command's --help."""
    return "\n\n".join(map(unmarked, ("Examples:", *lines)))


def argument(
    metavar: str, help: str, found: Callable[[Path], Path] | None = None
) -> Any:
    """An argument that names a file or a folder, the one that is `found` for it."""
    return typer.Argument(
        metavar=metavar, readable=False, help=unmarked(help), callback=found
    )


def read_numbers(text: str) -> tuple[float | str, ...]:
    """Numbers, separated by commas."""
    return tuple(read_number(part.strip()) for part in text.split(","))


def read_number(text: str) -> float | str:
    """A number, or a percentage: "0.5", "50%"; the type of its field refuses another text."""
    try:
        if text.endswith("%"):
            return float(Decimal(text[:-1]) / 100)
        return msgspec.convert(text, float, strict=False)
    except (ArithmeticError, msgspec.ValidationError):
        return text


def assignments(texts: Sequence[str]) -> dict[str, str]:
    """The values of --base-option NAME=VALUE, by name."""
    pairs = [text.partition("=") for text in texts]
    values = {key.strip(): value.strip() for key, _, value in pairs}
    if len(values) < len(texts) or not all(values) or not all(values.values()):
        problem = f"--base-option {' '.join(texts)}"
        raise RefimplError(
            problem, "NAME=VALUE, each name once", "correct --base-option"
        )
    return values


def value_type(hint: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """The type of an option's value for typer, and what makes the field's value of it."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint == npt.DTypeLike:
        return Literal["float32", "float64"], None
    if origin is Annotated:
        return value_type(inner[0])
    if hint is float:
        return str, read_number
    if origin is tuple:
        if inner[0] is float:
            return str, read_numbers
        return list[value_type(inner[0])[0]], tuple  # type: ignore[misc]
    if origin is Mapping:
        return list[str], assignments
    if origin not in (Union, UnionType):
        return hint, None
    kinds = [x for x in inner if x is not NoneType]
    if all(get_origin(x) is Literal for x in kinds):
        return Literal[tuple(word for x in kinds for word in get_args(x))], None
    one, read = value_type(kinds[0])
    return str if kinds[1:] else one, read


def shown_default(default: Any, read: Callable[[Any], Any] | None) -> Any:
    """A field's default as the default of its option; None if the field knows better."""
    if default in (None, MISSING, "default") or read is tuple:
        return None
    if read is read_numbers:
        return ",".join(map(str, default))
    return default if read is None else str(default)


@dataclass(frozen=True)
class Group:
    """The options of a command that fill one dataclass, which its parameter is annotated with."""

    panel: str  # heading in --help, for those that are not common
    only: tuple[str, ...] = ()  # the fields, if not all that are options
    says: Mapping[str, str] = field(
        default_factory=dict
    )  # what a command adds to the help
    # without defaults: what is given fills a dictionary of fields
    changes: bool = False

    def options(self, target: Any) -> Iterator[tuple[Field[Any], str, Any, Any]]:
        """The fields that are options: name, type for typer, and what makes their value of it."""
        for x in fields(target):
            if x.metadata and (not self.only or x.name in self.only):
                kinds = value_type(x.metadata.get("type", hints_of(target)[x.name]))
                yield x, x.metadata.get("name", x.name), *kinds

    def parameters(self, target: Any) -> Iterator[Parameter]:
        """The options as parameters of a command."""
        for x, name, hint, read in self.options(target):
            more, default = x.metadata, shown_default(x.default, read)
            required = x.default is MISSING and x.default_factory is MISSING
            help = _help(x, self.says.get(x.name, ""))
            if self.changes:
                help, default = help.partition(" Default: ")[0], None
            info = typer.Option(
                *more.get("flags", ()),
                f"--{name.replace('_', '-')}",
                help=unmarked(help),
                metavar="" if hint is bool else more["metavar"],
                readable=False,
                case_sensitive=False,
                show_default="Default:" not in help,
                rich_help_panel=None
                if more.get("common")
                else f"Advanced: {self.panel}",
            )
            hint = hint | None if default is None and not required else hint
            marks = [more["kind"]] if "kind" in more else []
            yield Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=Parameter.empty if required else default,
                annotation=Annotated[hint, info, *marks],
            )

    def take(self, target: Any, values: dict[str, Any]) -> Any:
        """Remove the options of the group from the values of a command, and fill the dataclass."""
        taken = [
            (x.name, values.pop(name), read)
            for x, name, _, read in self.options(target)
        ]
        filled = {
            name: read(value) if read else value
            for name, value, read in taken
            if value not in (None, [])
        }
        return filled if self.changes else target(**filled)


_PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def option_words(text: str) -> str:
    """A text of the library, whose parameters are spelled as options."""
    return _PARAMETER.sub(
        lambda found: f"--{found[1].replace('_', '-')} {found[2] or ''}".rstrip(), text
    )


def _help(x: Field[Any], more: str) -> str:
    """The help of a field and what a command adds, which may be another default."""
    text: str = x.metadata["help"]
    shown = text.partition(" Default: ")[0] if more.startswith("Default: ") else text
    return option_words(f"{shown} {more}".rstrip())


def as_options(error: RefimplError) -> RefimplError:
    """An error of the library in our words."""
    problem, expected, remedy = map(option_words, error.args[:3])
    return RefimplError(problem, expected, remedy, error.args[3])


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace every parameter annotated with a `Group` by its options, and check the outputs."""
    own = signature(command)
    groups: dict[str, tuple[Any, Group]] = {
        name: (target, mark)
        for name, parameter in own.parameters.items()
        for target, *marks in [get_args(parameter.annotation) or (None,)]
        for mark in marks
        if isinstance(mark, Group)
    }
    parameters = {
        each.name: each
        for name, parameter in own.parameters.items()
        for each in (
            groups[name][1].parameters(groups[name][0])
            if name in groups
            else [parameter]
        )
    }
    kinds = {name: _kind(parameter) for name, parameter in parameters.items()}
    outputs = {
        name: kind for name, kind in kinds.items() if isinstance(kind, OutputKind)
    }
    inputs = {name: kind for name, kind in kinds.items() if isinstance(kind, str)}

    @wraps(command)
    def ungrouped(**values: Any) -> None:
        for name, value in values.items():
            if isinstance(value, int) and not -INT64_LIMIT <= value < INT64_LIMIT:
                problem = f"--{name.replace('_', '-')} {str(value)[:40]}"
                raise RefimplError(
                    problem, "an integer of at most 64 bits", "use a smaller number"
                )
        check_outputs(values, inputs, outputs)
        output = next(
            (Path(values[name]) for name in outputs if values[name] is not None), None
        )
        # An overflow of an allocation is refused, too; scoring names its own precision.
        with terminal.interruptible(output), within_range("float64"):
            try:
                filled = {
                    name: group.take(x, values) for name, (x, group) in groups.items()
                }
                command(**values, **filled)
            except RefimplError as error:
                raise as_options(error) from error

    ungrouped.__signature__ = own.replace(parameters=[*parameters.values()])  # type: ignore[attr-defined]
    return ungrouped


def _kind(parameter: Parameter) -> OutputKind | str | None:
    """What a parameter writes; or the name, for messages, of what it reads; None if neither."""
    hint, *marks = get_args(parameter.annotation) or (parameter.annotation,)
    if Path not in (hint, *get_args(hint)):
        return None
    for mark in marks:
        if isinstance(mark, OutputKind):
            return mark
        if isinstance(mark, ArgumentInfo):
            return str(mark.metavar)
    return f"--{parameter.name.replace('_', '-')}"


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option stands in the command line."""
    origin = context.get_parameter_source(name)
    return origin is not None and origin.name != "DEFAULT"


def refuse(
    context: typer.Context,
    names: Iterable[str],
    other: str,
    expected: str,
    step: str = "",
) -> None:
    """Refuse options that have no meaning beside another option."""
    for name in names:
        if is_given(context, name):
            word = f"--{name.replace('_', '-')}"
            raise RefimplError(f"{word} with {other}", expected, f"{step}omit {word}")
