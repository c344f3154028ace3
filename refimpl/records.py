"""Records: what a package adds, one in each file, and what other packages add by entry points."""

import pkgutil
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from typing import TypeVar

from refimpl.errors import RefimplError

T = TypeVar("T")


@cache
def records(package: str, kind: type[T]) -> dict[str, T]:
    """The records of a kind in the modules of a package, by name."""
    modules = pkgutil.iter_modules(import_module(package).__path__, f"{package}.")
    found = (x for module in modules for x in vars(import_module(module.name)).values())
    by_name = {x.name: x for x in found if isinstance(x, kind)}  # type: ignore[attr-defined]
    return dict(sorted(by_name.items()))


@cache
def record_named(name: str, package: str, kind: type[T]) -> T | None:
    """The record of a name: in the package, or an entry point of the group of the same name."""
    ours: Mapping[str, T] = records(package, kind)  # type: ignore[arg-type]  # mypy's lru_cache
    if name in ours:
        return ours[name]
    from importlib.metadata import entry_points  # takes a while, and is rarely needed

    for entry in entry_points(group=package, name=name):
        try:
            record, why = entry.load(), f"no {kind.__name__}"
        except (Exception, SystemExit) as error:  # of the code of another package
            record, why = None, f"which fails with {type(error).__name__}: {error}"
        if not isinstance(record, kind):
            raise RefimplError(
                f"the entry point {name} of {package} is {entry.value}, {why}",
                f"a record of type refimpl.{kind.__name__}",
                "correct or remove the package that has it",
            )
        return record
    return None


def nearest(wrong: str, names: Iterable[str], otherwise: str) -> str:
    """The next step after a wrong name: to use the one that it resembles, if there is one."""
    close = get_close_matches(wrong.lower(), names, 1, 0.7)
    return f"use {close[0]}" if close else otherwise
