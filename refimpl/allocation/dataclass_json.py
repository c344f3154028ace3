"""Dataclasses as JSON, and back from JSON values of the declared types."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from math import isnan
from typing import Any, TypeVar

import numpy as np

from refimpl.arguments import hints_of, is_of_type

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A value for JSON: null for NaN, lists for arrays and tuples, objects for dataclasses."""
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    return None if isinstance(value, float) and isnan(value) else value


def filled(kind: type[T], values: Mapping[str, Any], **others: Any) -> T:
    """A dataclass from JSON values, each of the type that its field declares, and other values."""
    hints, plain = hints_of(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        name = field.name
        if name in others or (name not in values and field.default is not MISSING):
            continue  # older files lack some fields that have a default
        if not is_of_type(values[name], hints[name]):
            raise TypeError(f"{name} {values[name]!r}")
        plain[name] = values[name]
    return kind(**plain, **others)
