"""What pages say of records and documents: `python tests/tools/records_page.py`.

Bases and pruners come from their records, fields of JSON documents from the schemas, which
tests/loading/test_documents.py writes. All of it stands between comments.
"""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from regions import filled

from refimpl.arguments import described as accepted
from refimpl.bases.base import Base, bases
from refimpl.explanation.shown_values import docstring_of, full_name
from refimpl.pruners.pruner import Pruner, pruners

DOCS = Path(__file__).parents[2] / "docs"
NEEDS = {
    None: "nothing but the model's shape",
    "weights": "the weights",
    "squares": "the weights, and the squares of each linear's inputs",
    "products": "the weights, and the outer products of each linear's inputs",
}
HEAD = "| field | type | meaning |\n|---|---|---|\n"
DOCUMENTS = ("scores", "pruning", "evaluation", "check", "case")


def formulas(functions: Iterable[Callable[..., Any]]) -> str:
    """The formulas of functions, from their docstrings."""
    texts = ["\n    ".join([full_name(x), *docstring_of(x)[1:]]) for x in functions]
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


def kind(part: dict[str, Any]) -> str:
    """The type of a field, from its schema."""
    if "anyOf" in part:
        return " or ".join(sorted(map(kind, part["anyOf"]), key="null".__eq__))
    if "enum" in part:
        return " or ".join(f"`{x}`" for x in part["enum"])
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    inner = kind(part["items"]) if part.get("items") else ""
    return f"list of {inner}" if inner else str(part.get("type", "any value"))


def fields(name: str, shown: set[str]) -> str:
    """The fields of a document and of the objects in it that no document before has."""
    schema, text = json.loads((DOCS / f"reference/{name}.schema.json").read_text("utf-8")), ""
    for title, part in schema["$defs"].items():
        if title not in shown:
            text += f"\n### {title}\n\n{part['description']}\n\n{HEAD}"
            for field, x in part["properties"].items():
                meaning = x.get("description", "").replace("|", "\\|")
                text += f"| `{field}` | {kind(x)} | {meaning} |\n"
            shown.add(title)
    return re.sub(r"\bNone\b", "null", text) + "\n"


def pages() -> dict[Path, str]:
    """Every page with what the records say."""
    base_records, pruner_records = bases().values(), pruners().values()
    shown: set[str] = set()
    lists = {f"fields of {name}": fields(name, shown) for name in DOCUMENTS} | {
        "records of bases": "\n" + "".join(map(of_base, base_records)),
        "records of pruners": "\n" + "".join(map(of_pruner, pruner_records)),
        "modules of bases": f"\n```{{eval-rst}}\n{members(base_records)}```\n",
        "modules of pruners": f"\n```{{eval-rst}}\n{members(pruner_records)}```\n",
        "bases": titles(base_records),
        "pruners": titles(pruner_records),
    }
    names = ("api", "bases", "json", "pruners")
    paths = [DOCS / "reference" / f"{name}.md" for name in names]
    paths += [DOCS / "index.md", DOCS.parent / "README.md"]
    return {path: filled(path.read_text("utf-8"), lists) for path in paths}


if __name__ == "__main__":
    for path, page in pages().items():
        path.write_text(page, "utf-8")
