"""JSON Schema, as much of it as our schemas use: a document is refused at its first wrong value."""

import re
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]

_TYPES: Mapping[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
}
_RULES: Mapping[str, Callable[[Any, Any], bool]] = {  # of a value and the keyword's own
    "const": lambda value, const: type(value) is type(const) and value == const,
    "enum": lambda value, words: any(value == word for word in words),
    "minimum": lambda value, least: value >= least,
    "maximum": lambda value, most: value <= most,
    "exclusiveMinimum": lambda value, least: value > least,
    "minItems": lambda value, least: len(value) >= least,
    "maxItems": lambda value, most: len(value) <= most,
    "minLength": lambda value, least: len(value) >= least,
    "uniqueItems": lambda value, unique: not unique or len(set(map(repr, value))) == len(value),
    "pattern": lambda value, pattern: re.search(pattern, value) is not None,
}
_ABOUT = ("$schema", "$defs", "title", "description", "type", "properties", "items", "required")
_KNOWN = {*_ABOUT, *_RULES, "additionalProperties", "$ref"}


def require(value: Any, schema: Schema, root: Schema | None = None, path: str = "") -> None:
    """Refuse (ValueError) a document that does not follow a schema, with the first wrong value.

    A keyword that is not known here is a KeyError: no schema of ours may be checked by half.
    """
    root = schema if root is None else root
    if unknown := schema.keys() - _KNOWN:
        raise KeyError(f"keywords {unknown} of a schema")
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    place, types = path or "the document", schema.get("type", ())
    wanted = (types,) if isinstance(types, str) else types
    if wanted and not any(_TYPES[name](value) for name in wanted):
        raise ValueError(f"{place} is {value!r:.40}, expected {' or '.join(wanted)}")
    if value is None and "null" in wanted:
        return
    for keyword, rule in _RULES.items():
        if keyword in schema and not rule(value, schema[keyword]):
            raise ValueError(f"{place} is {value!r:.40}, expected {keyword} {schema[keyword]}")
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        if missing := [key for key in schema.get("required", ()) if key not in value]:
            raise ValueError(f"{place} has no {', '.join(missing)}")
        for key, inner in value.items():
            each = known.get(key, others)
            if each is False:
                raise ValueError(f"{place} has the unknown key {key!r:.40}")
            require(inner, each, root, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and "items" in schema:
        for i, inner in enumerate(value):
            require(inner, schema["items"], root, f"{path}[{i}]")
