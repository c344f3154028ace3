"""Records: what a package adds, one in each file, and what other packages add by entry points."""

import pkgutil
from collections.abc import Mapping
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
def named(name: str, package: str, kind: type[T]) -> T | None:
    """The record of a name: in the package, or an entry point of the group of the same name."""
    ours: Mapping[str, T] = records(package, kind)  # type: ignore[arg-type]  # mypy's lru_cache
    if name in ours:
        return ours[name]
    from importlib.metadata import entry_points  # takes a while, and is rarely needed

    for entry in entry_points(group=package, name=name):
        record = entry.load()
        if not isinstance(record, kind):
            raise RefimplError(
                f"the entry point {name} of {package} is {entry.value}, no {kind.__name__}",
                f"a record of type refimpl.{kind.__name__}",
                "correct or remove the package that has it",
            )
        return record
    return None
