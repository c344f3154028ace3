"""Options are fields of dataclasses: how typer reads them, and how they are checked."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import MISSING, Field, dataclass, field, fields
from decimal import Decimal
from functools import partial, wraps
from inspect import Parameter, cleandoc, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
import numpy as np
import numpy.typing as npt
import typer
from typer.models import ArgumentInfo

from refimpl.arguments import Checked, hints_of, option
from refimpl.cli import terminal
from refimpl.cli.outputs import OutputKind, check_outputs
from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import WHOLE
from refimpl.model.floating_point import loud


def plain(text: str) -> str:
    """A text that is not read as markup, so that [onnx] is shown."""
    return text.replace("[", r"\[")


def prose(*paragraphs: str) -> str:
    """Paragraphs of docstrings, each on one line."""
    parts = cleandoc("\n\n".join(filter(None, map(cleandoc, paragraphs)))).split("\n\n")
    return "\n\n".join(plain(" ".join(paragraph.split())) for paragraph in parts)


def examples(*lines: str) -> str:
    """What stands below the options of a command's --help."""
    return "\n\n".join(map(plain, ("Examples:", *lines)))


def argument(metavar: str, help: str, found: Callable[[Path], Path] | None = None) -> Any:
    """An argument that names a file or a folder, the one that is `found` for it."""
    return typer.Argument(metavar=metavar, readable=False, help=plain(help), callback=found)


def numbers(text: str) -> tuple[float | str, ...]:
    """Numbers, separated by commas."""
    return tuple(number(part.strip()) for part in text.split(","))


def number(text: str) -> float | str:
    """A number, or a percentage: "0.5", "50%"; the type of its field refuses another text."""
    try:
        if text.endswith("%"):
            return float(Decimal(text[:-1]) / 100)
        return msgspec.convert(text, float, strict=False)
    except (ArithmeticError, msgspec.ValidationError):
        return text


def assignments(name: str, texts: Sequence[str]) -> dict[str, str]:
    """The values of an option that takes NAME=VALUE, by name."""
    values: dict[str, str] = {}
    for text in texts:
        key, _, value = (part.strip() for part in text.partition("="))
        if not key or not value:
            word = f"--{name.replace('_', '-')}"
            raise RefimplError(f"{word} {text!r}", "NAME=VALUE", f"use {word} NAME=VALUE")
        if "=" in value:
            word = f" --{name.replace('_', '-')} "
            each = word.join(part.strip() for part in text.split(","))
            raise RefimplError(f"{word.strip()} {text!r}", "one NAME=VALUE", f"use{word}{each}")
        if key in values:
            problem = f"{name.replace('_', ' ')} {key} given twice"
            raise RefimplError(problem, "each option once", "remove one of them")
        values[key] = value
    return values


def value_type(name: str, hint: Any, default: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """The type of an option's value for typer, and how it becomes that of the field."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint == npt.DTypeLike:
        return Literal["float32", "float64"], None
    if origin is Annotated:
        return value_type(name, inner[0], default)
    if hint is float:
        return str, number
    if origin is tuple and inner[0] is float:
        return str, numbers
    if origin is tuple:
        return list[value_type(name, inner[0], None)[0]], tuple  # type: ignore[misc]
    if origin is Mapping:
        return list[str], partial(assignments, name)
    if origin not in (Union, UnionType):
        return hint, None
    words = [word for x in inner for word in get_args(x) if get_origin(x) is Literal]
    words = [word for word in words if word not in ("default", "none")]
    others = [x for x in inner if get_origin(x) is not Literal and x is not NoneType]
    if len(others) == 1 and not words:
        return value_type(name, others[0], default)
    if words and not others:
        none = NoneType in inner and default is not None
        names = (*words, "none") if none else tuple(words)
        return Literal[names], (lambda word: None if word == "none" else word)
    return str, number if words else None


def shown_default(default: Any, read: Callable[[Any], Any] | None) -> Any:
    """A field's default as the default of its option; None if the field knows better."""
    if default is MISSING or default == "default":
        return None
    if isinstance(default, type):  # a dtype
        return np.dtype(default).name
    if read is None or default is None:
        return default
    if isinstance(default, tuple):
        return ",".join(map(str, default)) if default and isinstance(default[0], float) else None
    return str(default)


@dataclass(frozen=True)
class Group:
    """The options of a command that fill one dataclass, which its parameter is annotated with."""

    panel: str  # heading in --help, for those that are not common
    only: tuple[str, ...] = ()  # the fields, if not all that are options
    says: Mapping[str, str] = field(default_factory=dict)  # what a command adds to the help
    changes: bool = False  # without defaults: what is given fills a dictionary of fields
    opened: Callable[..., AbstractContextManager[Any]] | None = None  # makes the dataclass

    def known(self, target: Any) -> list[Field[Any]]:
        """The fields that are options."""
        known = dict[str, Field[Any]]()
        for one in _types(target):
            known |= {x.name: x for x in fields(one) if x.name not in known}
        return [x for x in known.values() if x.metadata and (not self.only or x.name in self.only)]

    def parameters(self, target: Any) -> Iterator[Parameter]:
        """The options as parameters of a command."""
        hints = _hints(target)
        for x in self.known(target):
            more, name = x.metadata, _name(x)
            hint, read = value_type(name, more.get("type", hints[x.name]), x.default)
            default = shown_default(x.default, read)
            help = _help(x, self.says.get(x.name, ""))
            if self.changes:
                help, default = help.partition(" Default: ")[0], None
            long, flags = f"--{name.replace('_', '-')}", more.get("flags", ())
            info = typer.Option(
                *(x for x in flags if x[1] != "-"), long, *(x for x in flags if x[1] == "-"),
                help=plain(help), metavar="" if hint is bool else more["metavar"], readable=False,
                case_sensitive=False, show_default="Default:" not in help,
                rich_help_panel=None if more.get("common") else f"Advanced: {self.panel}",
            )  # fmt: skip
            required = x.default is MISSING and x.default_factory is MISSING
            hint = hint | None if default is None and not required else hint
            marks = [more["kind"]] if "kind" in more else []
            yield Parameter(
                name,
                Parameter.KEYWORD_ONLY,
                default=Parameter.empty if required else default,
                annotation=Annotated[hint, info, *marks],
            )

    def take(self, target: Any, values: dict[str, Any], ends: ExitStack) -> Any:
        """Remove the options of the group from the values of a command, and fill the dataclass."""
        filled: dict[str, Any] = {}
        hints = _hints(target)
        for x in self.known(target):
            value = values.pop(_name(x))
            if value not in (None, []):
                _, read = value_type(_name(x), x.metadata.get("type", hints[x.name]), x.default)
                filled[x.name] = read(value) if read else value
        if self.opened is not None:
            return ends.enter_context(self.opened(**filled))
        return filled if self.changes or len(_types(target)) > 1 else target(**filled)


def _name(x: Field[Any]) -> str:
    """The name of a field's option, as of a parameter."""
    return x.metadata.get("name", x.name)


def _types(target: Any) -> tuple[Any, ...]:
    """The dataclasses of a group: several fill a dictionary of fields, too."""
    return get_args(target) or (target,)


def _hints(target: Any) -> dict[str, Any]:
    """The types of all fields."""
    known = dict[str, Any]()
    for hints in map(hints_of, _types(target)):
        known |= {
            name: known[name] | hint if name in known else hint for name, hint in hints.items()
        }
    return known


def _help(x: Field[Any], more: str) -> str:
    """The help of a field and what a command adds, which may be another default."""
    text: str = x.metadata["help"]
    shown = text.partition(" Default: ")[0] if more.startswith("Default: ") else text
    return f"{shown} {more}".rstrip()


_PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]*))?`")


def as_options(error: RefimplError, fields: Iterable[Field[Any]]) -> RefimplError:
    """An error of the library, whose parameters are those fields or their like, in our words."""
    names = {x.name: _name(x) for x in fields}

    def option(found: re.Match[str]) -> str:
        name = names.get(found[1], found[1]).replace("_", "-")
        return f"--{name} {found[2] or ''}".rstrip()

    problem, expected, remedy = (_PARAMETER.sub(option, text) for text in error.args[:3])
    return RefimplError(problem, expected, remedy, error.args[3])


@dataclass(frozen=True)
class Common(Checked):
    """What every command that writes a file takes."""

    force: bool = option(False, "Replace an existing output.")


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
        for each in (groups[name][1].parameters(groups[name][0]) if name in groups else [parameter])
    }
    kinds = {name: _kind(parameter) for name, parameter in parameters.items()}
    outputs = {name: kind for name, kind in kinds.items() if isinstance(kind, OutputKind)}
    inputs = {name: kind for name, kind in kinds.items() if isinstance(kind, str)}
    writes = OutputKind.FILE in outputs.values()
    common = Group("Output").parameters(Common) if writes else ()

    @wraps(command)
    def ungrouped(**values: Any) -> None:
        for name, value in values.items():
            numbers = value if isinstance(value, list | tuple) else [value]
            if any(isinstance(x, int) and not -WHOLE <= x < WHOLE for x in numbers):
                problem = f"--{name.replace('_', '-')} {str(value)[:40]}"
                raise RefimplError(problem, "an integer of at most 64 bits", "use a smaller number")
        check_outputs(values, inputs, outputs)
        paths = [Path(values[name]) for name in outputs if values[name] is not None]
        known = (x for target, group in groups.values() for x in group.known(target))
        # Allocations are computed with loud arithmetic; scoring names its own precision.
        with terminal.interruptible(paths, dict(values)), loud("float64"), ExitStack() as ends:
            if writes:
                del values["force"]
            try:
                filled = {name: group.take(x, values, ends) for name, (x, group) in groups.items()}
                command(**values, **filled)
            except RefimplError as error:
                raise as_options(error, known) from error

    ungrouped.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*parameters.values(), *common]
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
    for name in filter(partial(is_given, context), names):
        word = f"--{name.replace('_', '-')}"
        raise RefimplError(f"{word} with {other}", expected, f"omit {word}")
