"""Arguments of public functions and fields of dataclasses, checked against their declared types."""

import fractions
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, fields
from functools import cache, partial, wraps
from inspect import signature
from math import inf, isnan
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from refimpl.errors import RefimplError

Compat = Literal["exact", "peer"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])
Count = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0)]


def integer(least: int, most: int) -> Any:
    """The type of the whole numbers from the least to the most."""
    return Annotated[int, Meta(ge=least, le=most)]


Device = Literal["auto", "cuda", "cpu"]
GraphDtype = Literal["float32", "float64"]
GraphOutputs = Literal["logits", "trace"]
WORDS = {int: "a whole number", float: "a number", str: "a text"}
NUMPY: dict[frozenset[Any], tuple[str, Callable[[Any], bool]]] = {  # by the kinds of a hint
    frozenset(get_args(npt.DTypeLike)): (
        "float32 or float64",
        lambda x: x is not None and np.dtype(x).char in "fd",
    ),
    frozenset(get_args(npt.ArrayLike)): (
        "an array of numbers, without a mask",
        lambda x: np.asarray(x).dtype.kind in "biufV",
    ),
}
hints_of: Callable[[Any], dict[str, Any]] = cache(partial(get_type_hints, include_extras=True))


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type; a bool is no number, and a masked array no array."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, np.ma.MaskedArray):
        return hint is Any
    if hint is Any or isinstance(hint, TypeVar) or getattr(hint, "_is_protocol", False):
        return True
    if origin in (Union, UnionType):
        special = next((kinds for kinds in NUMPY if {*inner} >= kinds), frozenset[Any]())
        with suppress(ValueError, TypeError, OverflowError):
            if special and NUMPY[special][1](value):
                return True
        return any(is_of_type(value, one) for one in inner if one not in special)
    if origin in (Annotated, Literal) or hint in WORDS:
        number = value.item() if isinstance(value, np.generic) else value
        if not isinstance(number, int | float | str | NoneType):
            return False  # msgspec makes numbers of decimals
        with suppress(msgspec.ValidationError):
            msgspec.convert(number, hint)
            return origin is not Annotated or number != inf
        return False
    if not isinstance(value, origin or hint):
        return False
    if origin is tuple:
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(is_of_type, value, kinds))
    if isinstance(value, Mapping) and inner:
        return all(all(map(is_of_type, pair, inner)) for pair in value.items())
    return origin is not Sequence or all(is_of_type(one, inner[0]) for one in value)


def described(hint: Any) -> str:
    """A declared type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Union and (special := [x for kinds, (x, _) in NUMPY.items() if {*inner} >= kinds]):
        return special[0]
    if origin is Annotated:
        least, most = inner[1].ge, inner[1].le
        limits = f", {least} or more" if most is None else f" from {least} to {most:,}"
        return WORDS[inner[0]] + limits
    if origin is tuple:
        return f"{described(inner[0])}, or several, separated by commas"
    if origin in (Union, UnionType, Literal):
        texts = dict.fromkeys(described(one) for one in inner if one is not NoneType)
        return " or ".join(x for x in texts if not any(y.startswith(f"{x}, or") for y in texts))
    name = getattr(origin or hint, "__name__", hint)
    return WORDS.get(hint) or str(name)


def percentage(name: str, value: Any, otherwise: str) -> str:
    """The next step for a fraction out of range; from 2 to 100, it was probably a percentage."""
    meant = isinstance(value, int | float) and 2 <= value <= 100
    return f"use `{name}={value / 100:g}`, which is {value:g}%" if meant else otherwise


def require(value: Any, hint: Any, name: str) -> None:
    """Refuse a value that is not of a declared type."""
    if not is_of_type(value, hint) or (isinstance(value, float) and isnan(value)):
        kinds = (hint, *get_args(hint))
        makers = [x.made_by for x in kinds if hasattr(x, "made_by")]
        step = f"make one by {makers[0]}" if makers else f"change `{name}`"
        ranges = [get_args(x) for x in kinds if get_origin(x) is Annotated]
        for kind, limits in ranges[:1]:
            if kind is int and is_of_type(value, int):  # the nearest
                least = max(value, limits.ge)
                step = f"use `{name}={least if limits.le is None else min(least, limits.le)}`"
            if (limits.ge, limits.le) == (0, 1):
                step = percentage(name, value, step)
        raise RefimplError(f"`{name}` {value!r:.80}", described(hint), step)


def option(default: Any, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A field of a dataclass that an option fills; `more` has its `name`, `flags` or `kind`."""
    metadata = {"help": help, "metavar": metavar, **more}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


common_option = partial(option, common=True)  # at the beginning of --help


def same_option(owner: Any, name: str, default: Any = ...) -> Any:
    """The option of another dataclass, which may have another default."""
    (known,) = (x for x in fields(owner) if x.name == name)
    return field(default=known.default if default is ... else default, metadata=known.metadata)


class Checked:
    """A dataclass whose fields have their declared types; numbers of NumPy become Python's."""

    def __init_subclass__(cls) -> None:
        """Document the fields by the help of their options."""
        helps = [(k, x.metadata["help"]) for k, x in vars(cls).items() if getattr(x, "metadata", 0)]
        head, raises, errors = (cls.__doc__ or "").partition("\n    Raises:")
        if helps and head:
            title = "" if "Args:" in head else "\n    Args:\n"
            args = "\n".join(f"        {name}: {help}" for name, help in helps)
            cls.__doc__ = f"{head.rstrip()}\n{title}{args}\n{raises}{errors}"

    def __post_init__(self) -> None:
        for name in (x.name for x in fields(self)):  # type: ignore[arg-type]
            hint = hints_of(type(self))[name]
            require(value := getattr(self, name), hint, name)
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())


def checked(function: F) -> F:
    """A function that refuses arguments of other types than it declares."""
    names = tuple(signature(function).parameters)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = (*zip(names, args, strict=False), *kwargs.items())  # a wrong number fails below
        for name, value in given:
            require(value, hints_of(function).get(name, Any), name)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def number_array(
    name: str,
    value: Any,
    shapes: Sequence[tuple[int, ...]] | int,
    kinds: str = "biuf",
    finite: bool = True,
) -> npt.NDArray[Any]:
    """A value as an array of numbers, of one of some shapes, or not empty with so many axes."""
    try:
        x = np.asarray(value)
    except ValueError:  # rows of several lengths
        x = np.array(None)
    if isinstance(shapes, int):
        fits, words = x.ndim == shapes and x.size > 0, "vector" if shapes == 1 else "matrix"
    else:
        fits, words = x.shape in shapes, " or ".join(str([*shape]) for shape in shapes)
    if not fits or x.dtype.kind not in kinds or isinstance(value, np.ma.MaskedArray):
        raise RefimplError(
            f"{name}: {value!r:.60}, of shape {[*x.shape]}",
            f"numbers of shape {words}",
            f"correct {name}",
        )
    if not (np.isfinite(x) if finite else x == x).all():
        bad = np.flatnonzero(~np.isfinite(x)).tolist()
        raise RefimplError(
            f"{name}: NaN or infinite at {bad[:5]}",
            "finite numbers",
            f"correct {name}",
        )
    return x


def unit_sizes(sizes: npt.ArrayLike) -> Ints:
    """The number of weights of each unit, [U] int64; refuses all but whole numbers from 1 on."""
    array = number_array("unit sizes", sizes, 1, "iu")
    if array.min() < 1:
        raise RefimplError(
            f"unit sizes: {array.min()}",
            "whole numbers, each at least 1",
            "correct unit sizes",
        )
    return array.astype(np.int64)


def finite_vector(values: npt.ArrayLike, name: str, size: int | None = None) -> Floats:
    """One finite number per unit, [U] float64; `name` says in the error what they are."""
    shapes = [(size,)] if size else 1
    return number_array(name, values, shapes).astype(np.float64)


def read_only(array: npt.ArrayLike) -> npt.NDArray[Any]:
    """A view that records from outside this package cannot write through."""
    view: npt.NDArray[Any] = np.asarray(array).view()
    view.flags.writeable = False
    return view


def decimal(value: float) -> fractions.Fraction:
    """The decimal that was requested, exactly: 7/10 for 0.7, not the nearest double."""
    return fractions.Fraction(repr(float(value)))


def score_matrix(score: npt.ArrayLike) -> npt.NDArray[Any]:
    """Scores [R, C] as they are; refuses what is not a matrix, or holds NaN."""
    return number_array("scores", score, 2, finite=False)
