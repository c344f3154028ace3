"""What pages say of bases and pruners, from their records: `python tests/tools/records_page.py`.

docs/reference/bases.md and pruners.md are written whole; lists on other pages stand between
comments.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from regions import filled

from refimpl.arguments import described as accepted
from refimpl.bases.base import Base, bases
from refimpl.explanation.shown_values import described, full_name
from refimpl.pruners.pruner import Pruner, pruners

DOCS = Path(__file__).parents[2] / "docs"
NEEDS = {
    None: "nothing but the model's shape",
    "weights": "the weights",
    "squares": "the weights, and the squares of each linear's inputs",
    "products": "the weights, and the outer products of each linear's inputs",
}
BASES_HEAD = """# Base allocations

A program writes this page from the records in `refimpl/bases/`.
[The method](../explanation/method.md#6-base-allocations) explains the formulas,
[the bibliography](../explanation/bibliography.md) names the works and their rivals, and
[add a base](../how-to/add-a-base.md) explains how to write one.
"""
PRUNERS_HEAD = """# Pruners

A program writes this page from the records in `refimpl/pruners/`.
[The method](../explanation/method.md#7-pruners) explains them,
[the bibliography](../explanation/bibliography.md#which-weights-are-removed) names the works, and
[add a pruner](../how-to/add-a-pruner.md) explains how to write one.
"""


def formulas(functions: Iterable[Callable[..., Any]]) -> str:
    """The formulas of functions, from their docstrings."""
    texts = ["\n    ".join([full_name(x), *described(x)[1:]]) for x in functions]
    return "```text\n" + "\n".join(texts) + "\n```\n"


def of_base(base: Base) -> str:
    """The section of a base."""
    title = base.title[0].upper() + base.title[1:]
    facts = f"\n## {title}\n\n`--base {base.name}` needs {NEEDS[base.needs]}."
    facts += f" Source: {base.source}.\n"
    rows = ""
    for name, x in base.options.items():
        default = "none" if x.default is None else x.default
        rows += f"| `{name}` | {accepted(x.kind)} | {default} | {x.help} |\n"
    table = f"\n| option | values | default | |\n|---|---|---|---|\n{rows}" if rows else ""
    deviations = f"\nDeviations: {base.deviations}.\n" if base.deviations else ""
    return f"{facts}{table}\n{formulas(base.formulas)}{deviations}"


def of_pruner(pruner: Pruner) -> str:
    """The section of a pruner."""
    title = pruner.title[0].upper() + pruner.title[1:]
    facts = f"\n## {title}\n\n`--pruner {pruner.name}` needs {NEEDS[pruner.needs or 'weights']}."
    options = ", ".join(f"`{name}`" for name in pruner.options)
    deviations = f"\nDeviations: {pruner.deviations}.\n" if pruner.deviations else ""
    facts += f" Source: {pruner.source}.\n"
    return facts + (f"\nOptions: {options}.\n" if options else "") + deviations


def module_of(record: Base | Pruner) -> str:
    """The module of the first function of a record, which is its own."""
    own = record.allocation if isinstance(record, Base) else record.score or record.compensate
    return str(getattr(own, "__module__", ""))


def members(records: Iterable[Base | Pruner]) -> str:
    """The library's page: what the modules of records hold."""
    return "".join(f".. automodule:: {module_of(x)}\n   :members:\n" for x in records)


def titles(records: Iterable[Base | Pruner]) -> str:
    """Titles, as in a sentence."""
    return ", ".join(record.title for record in records)


def pages() -> dict[Path, str]:
    """Every page with what the records say."""
    base_records, pruner_records = bases().values(), pruners().values()
    written = {
        DOCS / "reference" / "bases.md": BASES_HEAD + "".join(map(of_base, base_records)),
        DOCS / "reference" / "pruners.md": PRUNERS_HEAD + "".join(map(of_pruner, pruner_records)),
    }
    lists = {
        "modules of bases": f"\n```{{eval-rst}}\n{members(base_records)}```\n",
        "modules of pruners": f"\n```{{eval-rst}}\n{members(pruner_records)}```\n",
        "bases": titles(base_records),
        "pruners": titles(pruner_records),
    }
    for path in (DOCS / "reference" / "api.md", DOCS / "index.md", DOCS.parent / "README.md"):
        written[path] = filled(path.read_text("utf-8"), lists)
    return written


if __name__ == "__main__":
    for path, page in pages().items():
        path.write_text(page, "utf-8")
