"""Arguments of public functions and fields of dataclasses, checked against their declared types."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from fractions import Fraction as Ratio
from functools import cache, partial, wraps
from inspect import signature
from math import inf, isnan
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from refimpl.errors import RefimplError

Compat = Literal["exact", "peer"]
GraphDtype = Literal["float32", "float64"]
GraphOutputs = Literal["logits", "trace"]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
F = TypeVar("F", bound=Callable[..., Any])
AtLeastZero = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
NotNegative = Annotated[float, Meta(ge=0)]
WORDS = {int: "a whole number", float: "a number", str: "a text"}


@cache
def members(hint: Any) -> tuple[Any, ...]:
    """The types that a union joins, or the type itself; aliases are what they stand for."""
    hint = getattr(hint, "__value__", hint)  # NumPy has them from Python 3.12 on
    joined = get_args(hint) if get_origin(hint) in (Union, UnionType) else ()
    return tuple(kind for one in joined for kind in members(one)) or (hint,)


NUMPY: dict[
    frozenset[Any], tuple[str, Callable[[Any], bool]]
] = {  # by the kinds of a hint
    frozenset(members(npt.DTypeLike)): (
        "float32 or float64",
        lambda x: x is not None and np.dtype(x).char in "fd",
    ),
    frozenset(members(npt.ArrayLike)): (
        "an array of numbers, without a mask",
        lambda x: np.asarray(x).dtype.kind in "biufV",
    ),
}
hints_of: Callable[[Any], dict[str, Any]] = cache(
    partial(get_type_hints, include_extras=True)
)


def integer(least: int, most: int) -> Any:
    """The type of the whole numbers from the least to the most."""
    return Annotated[
        int, Meta(ge=int(least), le=int(most))
    ]  # typing keeps equal ones: 1 is 1.0


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value is of a declared type; a bool is no number, and a masked array no array."""
    if hint is Any or isinstance(value, np.ma.MaskedArray):
        return hint is Any
    hint, *others = kinds = members(hint)
    if others:
        special = next((x for x in NUMPY if x.issubset(kinds)), frozenset[Any]())
        with suppress(ValueError, TypeError, OverflowError):
            if special and NUMPY[special][1](value):
                return True
        return any(is_of_type(value, one) for one in kinds if one not in special)
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Annotated, Literal) or hint in WORDS:
        number = value.item() if isinstance(value, np.generic) else value
        if not isinstance(
            number, int | float | str | NoneType
        ):  # msgspec would take a decimal
            return False
        with suppress(msgspec.ValidationError):
            return bool(msgspec.convert(number, hint) != inf) or origin is not Annotated
        return False
    if origin is tuple:
        return isinstance(value, tuple) and all(
            is_of_type(one, inner[0]) for one in value
        )
    if origin is Mapping and isinstance(value, Mapping):
        return all(all(map(is_of_type, pair, inner)) for pair in value.items())
    return isinstance(value, origin or hint)


def described(hint: Any) -> str:
    """A declared type in words."""
    origin, inner, kinds = get_origin(hint), get_args(hint), members(hint)
    if origin is Annotated:
        least, most = inner[1].ge, inner[1].le
        limits = f", {least} or more" if most is None else f" from {least} to {most:,}"
        return WORDS[inner[0]] + limits
    if origin is tuple:
        return f"{described(inner[0])}, or several, separated by commas"
    if origin is Literal or len(kinds) > 1:
        special = [words for known, (words, _) in NUMPY.items() if {*kinds} >= known]
        every = inner if origin is Literal else kinds
        texts = special or dict.fromkeys(
            described(one) for one in every if one is not NoneType
        )
        return " or ".join(
            x for x in texts if not any(y.startswith(f"{x}, or") for y in texts)
        )
    return WORDS.get(hint) or str(getattr(origin or hint, "__name__", hint))


def require(value: Any, hint: Any, name: str) -> None:
    """Refuse a value that is not of a declared type."""
    if is_of_type(value, hint) and not (isinstance(value, float) and isnan(value)):
        return
    step = f"change `{name}`"
    for kind in members(hint):
        if hasattr(kind, "made_by"):
            step = f"make one by {kind.made_by}"
        elif kind == Fraction:
            if (
                isinstance(value, int | float) and 2 <= value <= 100
            ):  # probably a percentage
                step = f"use `{name}={value / 100:g}`, which is {value:g}%"
        elif get_origin(kind) is Annotated and is_of_type(value, int):  # the nearest
            least, most = kind.__metadata__[0].ge, kind.__metadata__[0].le
            nearest = least if value < least else most
            step = f"use `{name}={nearest}`"
    raise RefimplError(f"`{name}` {value!r:.80}", described(hint), step)


def option(default: Any, help: str, metavar: str | None = None, **more: Any) -> Any:
    """A field of a dataclass that an option fills; `more` has its `name`, `flags` or `kind`."""
    metadata = {"help": help, "metavar": metavar, **more}
    value = {"default_factory" if default is dict else "default": default}
    return field(**({} if default is ... else value), metadata=metadata)


common_option = partial(option, common=True)  # at the beginning of --help


def same_option(owner: Any, name: str, default: Any = ...) -> Any:
    """The option of another dataclass, which may have another default."""
    known = owner.__dataclass_fields__[name]
    return field(
        default=known.default if default is ... else default, metadata=known.metadata
    )


class Checked:
    """A dataclass whose fields have their declared types; numbers of NumPy become Python's."""

    def __init_subclass__(cls) -> None:
        """Document the fields by the help of their options."""
        helps = [
            (k, x.metadata["help"])
            for k, x in vars(cls).items()
            if getattr(x, "metadata", 0)
        ]
        head, raises, errors = (cls.__doc__ or "").partition("\n    Raises:")
        if helps and head:
            title = "" if "Args:" in head else "\n    Args:\n"
            args = "\n".join(f"        {name}: {help}" for name, help in helps)
            cls.__doc__ = f"{head.rstrip()}\n{title}{args}\n{raises}{errors}"

    def __post_init__(self) -> None:
        for name, value in [*vars(self).items()]:
            require(value, hints_of(type(self))[name], name)
            if isinstance(value, np.generic):
                object.__setattr__(self, name, value.item())


def checked(function: F) -> F:
    """A function that refuses arguments of other types than it declares."""
    names = tuple(signature(function).parameters)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = (
            *zip(names, args, strict=False),
            *kwargs.items(),
        )  # a wrong number fails below
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
    x = np.array(None)
    with suppress(ValueError):  # rows of several lengths
        x = np.asarray(value)
    if isinstance(shapes, int):
        fits, words = x.ndim == shapes and x.size > 0, ("vector", "matrix")[shapes - 1]
    else:
        fits, words = x.shape in shapes, " or ".join(str([*shape]) for shape in shapes)
    if fits and x.dtype.kind in kinds and not isinstance(value, np.ma.MaskedArray):
        bad = np.flatnonzero(~np.isfinite(x) if finite else np.isnan(x))
        if not bad.size:
            return x
        problem = f"NaN or infinite at {bad[:5].tolist()}"
    else:
        problem = f"{value!r:.60}, of shape {[*x.shape]}"
    raise RefimplError(
        f"{name}: {problem}", f"numbers of shape {words}", f"correct {name}"
    )


def unit_sizes(sizes: npt.ArrayLike) -> Ints:
    """The number of weights of each unit, [U] int64; refuses all but whole numbers from 1 on."""
    array = number_array("unit sizes", sizes, 1, "iu")
    require(array.min(), AtLeastOne, "unit sizes")
    return array.astype(np.int64)


def finite_vector(values: npt.ArrayLike, name: str, size: int | None = None) -> Floats:
    """One finite number per unit, [U] float64; `name` says in the error what they are."""
    return number_array(name, values, [(size,)] if size else 1).astype(np.float64)


def read_only(array: npt.ArrayLike) -> npt.NDArray[Any]:
    """A view that records from outside this package cannot write through."""
    view: npt.NDArray[Any] = np.asarray(array).view()
    view.flags.writeable = False
    return view


def decimal(value: float) -> Ratio:
    """The decimal that was requested, exactly: 7/10 for 0.7, not the nearest double."""
    return Ratio(repr(float(value)))
