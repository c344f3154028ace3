"""The one gate for files and JSON: what is read, how much of it, and documents of exact types."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import msgspec

from refimpl.errors import RefimplError, reading
from refimpl.running.file_system import MIB, open_file

DOCUMENT = 32 * MIB  # bytes of a JSON document: in memory twenty times as much
DEEPEST = 64  # nesting of JSON
INT64_LIMIT = 1 << 63  # the limit of integers


def read_file(path: Path, most: int = DOCUMENT) -> bytes:
    """The bytes of a file, which are at most `most`, also if it grows meanwhile."""
    with open_file(path, most) as file:
        return file.read(most)


def parsed_json(text: str | bytes, limit: float = inf) -> Any:
    """Parse JSON that can be written again: no NaN or Inf, limits of depth and of numbers."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    _check(value, limit, 0)
    return value


def _check(value: Any, limit: float, depth: int) -> None:
    """Refuse what is nested too deep, and numbers that are too large (integers: of 64 bits)."""
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if isinstance(value, dict):
        for inner in value.values():
            _check(inner, limit, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, limit, depth + 1)
    elif isinstance(value, int | float):
        within = -INT64_LIMIT <= value < INT64_LIMIT if isinstance(value, int) else True
        if not within or not abs(value) < limit:
            raise ValueError(f"the number {json.dumps(value):.40}")


T = TypeVar("T")
ErrorText = tuple[str, str, str]
"""What messages call a document, what is expected, and what to do next."""


class Document(msgspec.Struct, frozen=True, omit_defaults=True):
    """A document or an object in it: fields in order, without those that have their defaults."""


def filled(kind: type[T], *sources: object, **others: Any) -> T:
    """A struct or dataclass from the attributes of the same names, and from other values."""
    names = getattr(kind, "__struct_fields__", None) or kind.__dataclass_fields__  # type: ignore[attr-defined]
    values = {
        x: getattr(y, x) for y in reversed(sources) for x in names if hasattr(y, x)
    }
    return kind(**(values | others))


def plain(value: Any) -> Any:
    """A value as JSON values: null for NaN, lists for arrays, objects for structs and mappings."""
    made = msgspec.to_builtins(
        value, enc_hook=lambda x: dict(x) if isinstance(x, Mapping) else x.tolist()
    )
    return json.loads(
        json.dumps(made),
        parse_constant=lambda name: None if name == "NaN" else float(name),
    )


def converted(value: Any, kind: type[T], path: str = "", exact: bool = False) -> T:
    """A struct or dataclass from JSON values; if exact, from every field of it and no other."""
    try:
        found = msgspec.convert(value, kind, dec_hook=_decoded)
    except msgspec.ValidationError as error:
        raise ValueError(_worded(str(error), value, path)) from error
    if exact:
        _require_fields(value, found, path)
    return found


def _require_fields(value: Any, found: Any, path: str) -> None:
    """Refuse objects that lack a field of their dataclass, or that have others."""
    names = getattr(
        found, "__dataclass_fields__", getattr(found, "__struct_fields__", None)
    )
    if names is not None:
        found = {name: getattr(found, name) for name in names}
    if isinstance(found, Mapping):
        if odd := sorted(value.keys() ^ found.keys()):
            what = "the unknown key" if odd[0] in value else "no"
            raise ValueError(f"{path or 'the document'} has {what} {odd[0]:.60}")
        for key, inner in found.items():
            _require_fields(value[key], inner, f"{path}.{key}".lstrip("."))
    elif isinstance(found, list | tuple):
        for i, inner in enumerate(found):
            _require_fields(value[i], inner, f"{path}[{i}]")


def _worded(message: str, value: Any, start: str) -> str:
    """The path of a wrong value, the value, and what was expected, from the library's message."""
    reason, _, path = message.replace("`", "").partition(" - at $")
    reason, known = reason.partition("\n")[0], "..." not in path
    for key, index in re.findall(r"\.(\w+)|\[(\d+)\]", path if known else ""):
        value = value[key or int(index)]
    path = (start + path).lstrip(".") or "the document"
    if reason.startswith("."):  # of an object in it
        return path + reason
    for theirs, ours in (
        ("missing required field", "no"),
        ("contains unknown field", "the key"),
    ):
        if reason.startswith(f"Object {theirs}"):
            return f"{path} has {ours}{reason.removeprefix(f'Object {theirs}'):.60}"
    return f"{path} is {value!r:.40}: {reason}" if known else f"{path}: {reason}"


def _decoded(kind: Any, value: Any) -> Any:
    """An array of numbers from lists, null is NaN; or the subclass that an object names."""
    import numpy as np  # not needed to read a case's facts

    if get_origin(kind) is not np.ndarray:
        named = {x.kind: x for x in kind.__subclasses__()}
        name = value.get("kind") if isinstance(value, Mapping) else value
        if not isinstance(name, str) or name not in named:
            raise ValueError(f".kind is {name!r:.40}: expected {' or '.join(named)}")
        try:
            return converted(value, named[name])
        except ValueError as error:
            raise ValueError(f".{error}") from error
    scalar, cells = get_args(get_args(kind)[1])[0], np.array(value, object)
    exact = {np.int64: ((int,), "whole numbers"), np.bool_: ((bool,), "true or false")}
    kinds, expected = exact.get(scalar, ((int, float, type(None)), "numbers"))
    if not isinstance(value, list) or not all(type(x) in kinds for x in cells.flat):
        raise ValueError(f"expected {expected}, or lists of as many")
    return cells.astype(scalar if scalar in exact else np.float64)


@contextmanager
def reading_document(path: Path | str, named: ErrorText) -> Iterator[None]:
    """Refuse a file that cannot be read, or whose contents are not those of a document."""
    name, expected, remedy = named
    with reading(path, expected):
        try:
            yield
        except ValueError as error:
            why = (
                str(error).partition("\n")[0].replace("`", "")
            )  # no parameters of a call
            raise RefimplError(
                f"{path}: not {name} ({why})", expected, remedy
            ) from error


def parsed_object(
    content: str | bytes, version: int | None = None, limit: float = inf
) -> dict[str, Any]:
    """Parse a JSON object of this format, or of any; its numbers are smaller than a limit."""
    document = parsed_json(content, limit)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    if version is not None and document.get("format") != version:
        raise ValueError(f"format {document.get('format')!r}, expected {version}")
    return document


def json_object(text: str | bytes, source: str, expected: str) -> dict[str, Any]:
    """Parse a JSON object; `source` is the file."""
    with reading_document(source, ("a JSON object", expected, f"correct {source}")):
        return parsed_object(text)


def read_document(
    path: Path, named: ErrorText, version: int | None, made: Callable[[Any], T]
) -> T:
    """Read a document, made of a JSON object of this format."""
    with reading_document(path, named):
        return made(parsed_object(read_file(path), version))
