"""Bases and pruners of other packages: they return odd values, and change what they are given.

`CHOSEN` names what the records of the next run do. Entry points of a made-up package load them.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

RIGHT, THIEF = "right", "changes what it is given"
CHOSEN: tuple[str, str, str] = (
    "uniform",
    "",
    RIGHT,
)  # a record, a field of it, what it does
FORGED = "\x1b[2Jx\nerror: forged"
VALUES: dict[str, Callable[[np.ndarray], Any]] = {  # what is returned for a right array
    "None": lambda x: None,
    "text": lambda x: FORGED,
    "list": lambda x: x.tolist(),
    "jagged": lambda x: [[1.0], [1.0, 2.0]],
    "generator": lambda x: (y for y in x),
    "number": lambda x: 0.5,
    "shorter": lambda x: x[:-1],
    "empty": lambda x: x[:0],
    "complex": lambda x: x.astype(complex),
    "objects": lambda x: x.astype(object),
    "texts": lambda x: x.astype(str),
    "integers": lambda x: x.astype(np.int8),
    "half": lambda x: x.astype(np.float16),
    "NaN": lambda x: x * np.nan,
    "infinite": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 1, np.inf, x),
    "large": lambda x: np.full(x.shape, 1e308),
    "negative": lambda x: np.full(x.shape, -3.0),
    "zeros": lambda x: np.zeros(x.shape, x.dtype),
    "strided": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "masked": lambda x: np.ma.masked_array(x, x > np.mean(x)),
    "read-only": lambda x: np.broadcast_to(x[:1], x.shape),
}
SIGNALS: dict[
    str, Callable[[Mapping, int], Any]
] = {  # for a right signal of a block, by number
    "no mapping": lambda x, i: None,
    "a number": lambda x, i: 0.5,
    "nothing": lambda x, i: {},
    "numbered": lambda x, i: dict(enumerate(x.values())),
    "a name of each block": lambda x, i: {f"block {i}": y for y in x.values()},
    "fewer names": lambda x, i: dict(x) if i == 0 else {"other": 1.0, **x},
    "forged names": lambda x, i: dict.fromkeys([FORGED], 1.0),
    "a number of the first": lambda x, i: {
        n: 0.5 if i == 0 else y for n, y in x.items()
    },
    "a number of the last": lambda x, i: {n: 0.5 if i else y for n, y in x.items()},
    "pairs": lambda x, i: [*x.items()],
}
FIELDS: dict[str, tuple[Any, ...]] = {  # of the record itself
    "name": ("", FORGED, "owl", "wanda", "a" * 5000, None, 3),
    "title": (FORGED, None),
    "needs": ("rubbish", None),
    "options": (None, ("rubbish",), {"epsilon": 0.5}, ("seed", "damping")),
    "signal": (None, 3),
    "unit": (FORGED,),
    "column": (FORGED, "a" * 500),
    "allocation": (None,),
    "score": (None, 3),
    "keep": (3,),
    "symbol": (FORGED,),
}
PARTS = ("keep", "weight")  # of what `compensate` returns
GROUPS = {"base": "refimpl.bases", "pruner": "refimpl.pruners"}
ENTRIES = {  # of both groups
    "own": "own_records:RECORD",
    "absent-module": "absent_module:RECORD",
    "absent-name": "own_records:ABSENT",
    "wrong-syntax": "wrong_syntax:RECORD",
    "fails": "own_records:FAILS",
    "exits": "own_records:EXITS",
    "number": "own_records:THIEF",
    "class": "refimpl.bases.base:Base",
    "module": "own_records",
    "nothing": ":::",
}


def choice(random: Random) -> tuple[str, tuple[str, str, str]]:
    """What sort of record, and one of what it does."""
    from refimpl.bases.base import bases
    from refimpl.pruners.pruner import pruners

    sort = random.choice([*GROUPS])
    record = random.choice([*({"base": bases, "pruner": pruners}[sort]()).values()])
    functions = ("signal", "allocation") if sort == "base" else ("score", "keep")
    names = [name for name in functions if getattr(record, name)] or ["score"]
    if getattr(record, "compensate", None):
        names += ["compensate keep", "compensate weight"]
    field, share = random.choice(names), random.random()
    if share < 0.2 and not field.startswith(
        "keep"
    ):  # whose scores are the record's own
        how = THIEF
    elif share < 0.4:
        field = random.choice([name for name in FIELDS if hasattr(record, name)])
        how = str(random.randrange(len(FIELDS[field])))
    else:
        how = random.choice(
            [*SIGNALS] if field == "signal" and share < 0.6 else [*VALUES]
        )
    return sort, (record.name, field, how)


def __getattr__(name: str) -> Any:
    """What entry points load."""
    if name == "FAILS":
        raise ZeroDivisionError(FORGED)
    if name == "EXITS":
        raise SystemExit(3)
    if name == "RECORD":
        return _record(*CHOSEN)
    raise AttributeError(name)


def _record(name: str, field: str, how: str) -> Any:
    """A record of refimpl under another name, with one of its fields odd."""
    from refimpl.bases.base import bases
    from refimpl.pruners.pruner import pruners

    record = replace((bases() | pruners())[name], name="own")
    if how == RIGHT:
        return record
    if how.isdigit():
        return replace(record, **{field: FIELDS[field][int(how)]})
    field, _, part = field.partition(" ")
    right = getattr(record, field)
    if (
        field == "signal" and how != THIEF
    ):  # the allocation of a record has to fit its own signal
        record = replace(
            record, allocation=lambda x: np.full(len(x.linears), x.sparsity)
        )

    def function(*inputs: Any) -> Any:
        if how == THIEF:
            steal(*inputs)
        made = right(*inputs)
        if part and how != THIEF:
            return tuple(
                odd(x, how) if at == part else x
                for x, at in zip(made, PARTS, strict=True)
            )
        if how in SIGNALS:
            return SIGNALS[how](made, inputs[0].index)
        if field == "signal" and how != THIEF:
            return {name: odd(x, how) for name, x in made.items()}
        return made if how == THIEF else odd(made, how)

    return replace(record, **{field: function})


def odd(value: Any, how: str) -> Any:
    """A right array, changed; a number is no array."""
    with np.errstate(all="ignore"), suppress(IndexError, TypeError, ValueError):
        return VALUES[how](np.asarray(value))


def steal(*inputs: Any) -> None:
    """Change what can be changed without force of everything in some inputs."""
    for value in inputs:
        if is_dataclass(value):
            steal(*(getattr(value, x.name) for x in fields(value)))
        elif isinstance(value, Mapping | list | tuple):
            steal(*(value.values() if isinstance(value, Mapping) else value))
        with suppress(Exception):
            value.clear()
        with suppress(Exception):
            value[...] = 0


def install(folder: Path) -> None:
    """Write the made-up package, whose folder is to be on `sys.path`."""
    facts = folder / "fuzzed-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: fuzzed\nVersion: 1.0\n"
    )
    lines = [f"{name} = {value}" for name, value in ENTRIES.items()]
    text = "".join("\n".join([f"[{group}]", *lines, ""]) for group in GROUPS.values())
    (facts / "entry_points.txt").write_text(text)
    (folder / "wrong_syntax.py").write_text("RECORD = (\n")
