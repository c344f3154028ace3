"""Arguments of public functions and fields of dataclasses, checked against their declared types."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, field, fields
from functools import cache, partial, wraps
from inspect import signature
from math import inf, isnan
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError

P = ParamSpec("P")
T = TypeVar("T")
# A type, and the least and the greatest value.
Seed = Annotated[int, 0, inf]
AtLeastOne = Annotated[int, 1, inf]
Fraction = Annotated[float, 0, 1]
NotNegative = Annotated[float, 0, inf]
Device = Literal["auto", "cuda", "cpu"]
GraphDtype = Literal["float16", "float32", "float64"]
GraphOutputs = Literal["logits", "trace"]
NUMBERS = {int: (int, np.integer), float: (int, float, np.integer, np.floating)}
WORDS = {int: "a whole number", float: "a number", str: "a text"}
ARRAY, DTYPE = (frozenset(get_args(hint)) for hint in (npt.ArrayLike, npt.DTypeLike))
hints_of: Callable[[Any], dict[str, Any]] = cache(partial(get_type_hints, include_extras=True))


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type; a bool is no number, and a masked array no array."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or isinstance(hint, TypeVar) or getattr(hint, "_is_protocol", False):
        return True
    if origin is Annotated:
        return is_of_type(value, inner[0]) and inner[1] <= value <= inner[2] and value < inf
    if origin in (Union, UnionType):
        special = next((kinds for kinds in (DTYPE, ARRAY) if {*inner} >= kinds), frozenset[Any]())
        if special and _is_for_numpy(value, special is DTYPE):
            return True
        return any(is_of_type(value, one) for one in inner if one not in special)
    if origin is Literal:
        return any(type(value) is type(word) and value == word for word in inner)
    if hint in NUMBERS:
        return isinstance(value, NUMBERS[hint]) and not isinstance(value, bool)
    if isinstance(value, np.ma.MaskedArray) or not isinstance(value, origin or hint):
        return False
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(is_of_type, value, kinds))
    if isinstance(value, Mapping) and inner:
        return all(all(map(is_of_type, pair, inner)) for pair in value.items())
    return origin is not Sequence or all(is_of_type(one, inner[0]) for one in value)


def _is_for_numpy(value: Any, dtype: bool) -> bool:
    """Whether NumPy makes numbers of a value (not of a text, nor of a mask); or float's dtypes."""
    try:
        if dtype:
            return value is not None and np.dtype(value) in (np.float32, np.float64)
        return not isinstance(value, np.ma.MaskedArray) and np.asarray(value).dtype.kind in "biufV"
    except (ValueError, TypeError, OverflowError):
        return False


def described(hint: Any) -> str:
    """A declared type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Union and {*inner} >= DTYPE:
        return "float32 or float64"
    if origin is Union and {*inner} >= ARRAY:
        return "an array of numbers, without a mask"
    if origin is Annotated:
        low, high = inner[1:]
        return WORDS[inner[0]] + (f", {low} or more" if high == inf else f" from {low} to {high:,}")
    if origin in (Union, UnionType, Literal):
        return " or ".join(described(one) for one in inner if one is not NoneType)
    name = getattr(origin or hint, "__name__", hint)
    return WORDS.get(hint) or str(hint if origin is tuple else name)


def percentage(spelling: str, value: Any, otherwise: str) -> str:
    """The next step for a fraction out of range; from 2 to 100, it was probably a percentage."""
    meant = isinstance(value, int | float) and 2 <= value <= 100
    return f"use {spelling}{value / 100:g}, which is {value:g}%" if meant else otherwise


def require(value: Any, hint: Any, name: str, spelling: str = "") -> None:
    """Refuse a value that is not of a declared type; a command spells its name in another way."""
    if not is_of_type(value, hint) or (isinstance(value, float) and isnan(value)):
        shown = name.replace("_", "-")
        spelling = spelling or f"{shown} "
        step = f"change {spelling.rstrip(' =')}"
        limited = [get_args(x) for x in (hint, *get_args(hint)) if get_origin(x) is Annotated]
        if limited and limited[0][0] is int and is_of_type(value, int):
            step = f"use {spelling}{sorted((value, *limited[0][1:]))[1]}"  # the nearest
        if get_args(hint)[1:] == (0, 1):
            step = percentage(spelling, value, step)
        raise RefimplError(f"{shown} {value!r:.80}", described(hint), step)


def option(default: Any, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A field of a dataclass that an option of a command fills; every option is such a field.

    `more` has what the name and the type of the field do not say: another `name`; the option that
    this field is a part `of`, as NAME=VALUE; more `flags`; and the `kind` of an output.
    """
    metadata = {"help": help, "metavar": metavar, **more}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def common_option(default: Any, help: str, metavar: str | None = None, **more: Any) -> Any:
    """An option that stands at the beginning of --help."""
    return option(default, help, metavar, common=True, **more)


def same_option(owner: Any, name: str, default: Any = ...) -> Any:
    """The option of another dataclass, which may have another default."""
    (known,) = (x for x in fields(owner) if x.name == name)
    return field(default=known.default if default is ... else default, metadata=known.metadata)


def spelled(x: "Field[Any]") -> str:
    """How a command takes a field, up to its value: "--lo ", "--probe delta="."""
    if of := x.metadata.get("of"):
        return f"--{of} {x.name.removeprefix(f'{of}_')}="
    return f"--{x.metadata.get('name', x.name).replace('_', '-')} " if x.metadata else f"{x.name} "


class Checked:
    """A dataclass whose fields have their declared types; numbers of NumPy become Python's."""

    def __init_subclass__(cls) -> None:
        """Document the fields by the help of their options."""
        helps = [(k, x.metadata["help"]) for k, x in vars(cls).items() if isinstance(x, Field)]
        head, raises, errors = (cls.__doc__ or "").partition("\n    Raises:")
        if helps and head:
            title = "" if "Args:" in head else "\n    Args:\n"
            args = "\n".join(f"        {name}: {help}" for name, help in helps)
            cls.__doc__ = f"{head.rstrip()}\n{title}{args}\n{raises}{errors}"

    def __post_init__(self) -> None:
        spellings = {x.name: spelled(x) for x in fields(self)}  # type: ignore[arg-type]
        for name, hint in hints_of(type(self)).items():
            require(value := getattr(self, name), hint, name, spellings[name])
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """A function that refuses arguments of other types than it declares."""
    names = tuple(signature(function).parameters)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        hints = hints_of(function)
        given = (*zip(names, args, strict=False), *kwargs.items())  # a wrong number fails below
        for name, value in given:
            require(value, hints.get(name, Any), name)
        return function(*args, **kwargs)

    return call
