"""What programs write on pages: `python tests/tools/pages.py`, or some of them, by name.

It stands in regions, `<!-- name -->` to `<!-- end -->`: the commands and their options from the
program; bases and pruners from their records; fields of JSON documents from the schemas, which
tests/loading/test_documents.py writes; lists of families; and in the tutorial, where a region
`source pico.rms_norm` holds that function of docs/tutorial/pico.py. `python tests/tools/pages.py
families` also measures the table of families: errors against transformers' values in the fixtures.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from inspect import getsource
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path += [
    str(x) for x in (ROOT, ROOT / "tests", DOCS / "tutorial") if str(x) not in sys.path
]

from gates import CASES, UNRECORDED, expected_of, model_of, worst_point  # noqa: E402

from refimpl import Model, forward  # noqa: E402
from refimpl.arguments import described as accepted  # noqa: E402
from refimpl.bases.base import Base, bases  # noqa: E402
from refimpl.cli.main import COMMANDS, loaded  # noqa: E402
from refimpl.explanation.shown_values import docstring_of, full_name  # noqa: E402
from refimpl.loading.config_json import COMPOSITES, TEXT_FAMILIES  # noqa: E402
from refimpl.loading.families import FAMILIES, REFUSED  # noqa: E402
from refimpl.model.config import BlockKind, Config, Mixer  # noqa: E402
from refimpl.model.experts import Experts  # noqa: E402
from refimpl.model.mixers.softmax_attention import Attention  # noqa: E402
from refimpl.pruners.pruner import Pruner, pruners  # noqa: E402

FAMILIES_PAGE, TUTORIAL = (
    DOCS / "reference/families.md",
    sorted((DOCS / "tutorial").glob("*.md")),
)
REGION = re.compile(r"(<!-- ([\w./ -]+) -->)((?:(?!<!-- ).)*)<!-- end -->", re.DOTALL)
NEEDS = {
    None: "nothing but the model's shape",
    "weights": "the weights",
    "squares": "the weights, and the squares of each linear's inputs",
    "products": "the weights, and the outer products of each linear's inputs",
}
HEAD = "| field | type | meaning |\n|---|---|---|\n"
DOCUMENTS = ("scores", "pruning", "evaluation", "check", "case")
DTYPES = ("float64", "float32")
OPTIONAL = re.compile(
    r"(post|q|q_a|kv_a|width|rope|embed|state)_norm$|^sinks$|_proj.bias$"
)


def regions(page: str) -> dict[str, str]:
    """What stands in each region of a page."""
    return {name: text for _, name, text in REGION.findall(page)}


def filled(page: str, texts: Mapping[str, str]) -> str:
    """A page with these texts in its regions of these names; the others stay as they are."""
    return REGION.sub(lambda at: f"{at[1]}{texts.get(at[2], at[3])}<!-- end -->", page)


def fill(path: Path, texts: Mapping[str, str]) -> None:
    """Write texts into the regions of a file."""
    path.write_text(filled(path.read_text("utf-8"), texts), "utf-8")


def commands() -> dict[str, Any]:
    """The program's commands by name, those of a group as `case make`."""
    commands: dict[str, Any] = {}
    for name in (name for panel in COMMANDS.values() for name in panel):
        command = loaded(name)
        inner = getattr(command, "commands", {})
        commands |= {f"{name} {word}": one for word, one in inner.items()} or {
            name: command
        }
    return commands


def shown(text: str) -> str:
    """A text of --help as it is shown, on a page."""
    return re.sub(
        r"(?<![^\s(])(--?[a-z][\w-]*)", r"`\1`", text.replace("\\[", "[")
    ).replace("*", r"\*")


def value(parameter: Any) -> str:
    """The value of an option: its placeholder, or the words to choose from."""
    return parameter.metavar or " | ".join(getattr(parameter.type, "choices", ()))


def entry(parameter: Any) -> str:
    """One argument or option: its names and value, its meaning and default."""
    default, argument = parameter.default, parameter.param_type_name == "argument"
    simple = isinstance(default, str | int | float) and not isinstance(default, bool)
    names = (
        [parameter.metavar or parameter.name.upper()] if argument else parameter.opts
    )
    term = ", ".join(f"`{name}`" for name in names)
    term += f" `{value(parameter)}`" if value(parameter) and not argument else ""
    notes = ("Required.",) if parameter.required and not argument else ()
    notes += (
        (f"Default: `{default}`.",)
        if simple and "Default:" not in parameter.help
        else ()
    )
    return f"{term}\n: {' '.join((shown(parameter.help), *notes))}\n"


def section(name: str, command: Any) -> str:
    """What a command does, its examples, and all arguments and options, by their panels."""
    examples = (command.epilog or "").removeprefix("Examples:").split("\n\n")
    lines = "\n".join(line.strip() for line in examples if line.strip())
    parts = [
        f"## refimpl {name}",
        shown(command.help),
        f"```text\n{lines}\n```" if lines else "",
    ]
    listed = [x for x in command.params if x.name != "help"]
    panels = list(dict.fromkeys(x.rich_help_panel for x in listed))
    ordered = sorted(listed, key=lambda x: panels.index(x.rich_help_panel))
    for panel, group in groupby(ordered, key=lambda x: x.rich_help_panel):
        parts += [f"**{panel or 'Options'}**", "\n".join(map(entry, group)).rstrip()]
    return "\n\n".join(part for part in parts if part)


def index() -> str:
    """The commands, each with its sentence."""
    rows = ["| command | does |", "|---|---|"]
    for name, command in commands().items():
        sentence = command.help.partition("\n\n")[0].replace("\n", " ")
        rows.append(
            f"| [`{name}`](#refimpl-{name.replace(' ', '-')}) | {shown(sentence)} |"
        )
    return "\n".join(rows)


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
    table = (
        f"\n| option | values | default | |\n|---|---|---|---|\n{rows}" if rows else ""
    )
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
    own = (
        record.allocation
        if isinstance(record, Base)
        else record.score or record.compensate
    )
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


def document_fields(name: str, shown: set[str]) -> str:
    """The fields of a document and of the objects in it that no document before has."""
    schema, text = (
        json.loads((DOCS / f"reference/{name}.schema.json").read_text("utf-8")),
        "",
    )
    for title, part in schema["$defs"].items():
        if title not in shown:
            text += f"\n### {title}\n\n{part['description']}\n\n{HEAD}"
            for field, x in part["properties"].items():
                meaning = x.get("description", "").replace("|", "\\|")
                text += f"| `{field}` | {kind(x)} | {meaning} |\n"
            shown.add(title)
    return re.sub(r"\bNone\b", "null", text) + "\n"


def settings(part: Any) -> Iterator[str]:
    """Fields of a configuration that are not at their defaults: words, or the names of others."""
    for x in fields(part):
        value = getattr(part, x.name)
        number = (
            type(value) in (int, float) and x.default is MISSING and x.name != "window"
        )
        shown = isinstance(part, Config | BlockKind | Experts) or isinstance(
            value, str | bool
        )
        if (
            number
            or not shown
            or x.name == "family"
            or value in (x.default, None, False, ())
        ):
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mixer):
            yield from (
                () if value.name == Attention.name else [value.name.replace("_", " ")]
            )
            yield from settings(value)
        elif x.name == "blocks":
            yield from (setting for kind in value for setting in settings(kind))
        else:
            yield x.name
            yield from settings(value) if is_dataclass(value) else ()


def mechanisms(model: Model) -> list[str]:
    """What the configuration of a model sets, and weights that not all models have."""
    roles = (n.split(".", 2)[-1].removesuffix(".weight") for n in model.weights)
    some = {
        x if x.endswith(("norm", "sinks")) else "bias"
        for x in roles
        if OPTIONAL.search(x)
    }
    return [*settings(model.config), *sorted(some)]


def deviation(case: str, dtype: str) -> float:
    """The worst token's error over all trace points of a fixture."""
    ids, expected = expected_of(case)
    return worst_point(
        forward(model_of(case), ids, trace=True, dtype=dtype).trace, expected
    )[0]


def families_table() -> str:
    """One row per family, over all its fixtures."""
    head = f"| family | mechanisms | {' | '.join(DTYPES)} | ONNX |\n|---|---|---|---|---|\n"
    cases: dict[str, list[str]] = {name: [] for name in FAMILIES}
    for case in CASES:
        cases[model_of(case).config.family].append(case)
    rows = [
        (
            f"`{family}`",
            "; ".join(
                dict.fromkeys(m for case in own for m in mechanisms(model_of(case)))
            ),
            *(f"{max(deviation(case, dtype) for case in own):.0e}" for dtype in DTYPES),
            "no" if {*own} & {*UNRECORDED} else "yes",  # tests/onnx runs every other
        )
        for family, own in cases.items()
    ]
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def family_names() -> str:
    """The families, as two lists."""
    experts = {model_of(x).config.family for x in CASES if model_of(x).config.experts}
    dense = [f"`{x}`" for x in FAMILIES if x not in experts]
    mixed = [f"`{x}`" for x in FAMILIES if x in experts]
    lists = (("dense", dense), ("mixtures of experts", mixed))
    return (
        "\n"
        + "\n".join(f"- {len(x)} {what}: {', '.join(x)}" for what, x in lists)
        + "\n\n"
    )


def refused() -> str:
    """One row per reason for which families are refused."""
    families: dict[str, list[str]] = {}
    for family, reason in REFUSED.items():
        families.setdefault(reason, []).append(f"`{family}`")
    rows = (f"| {', '.join(own)} | {has} |\n" for has, own in families.items())
    return "| family | what it has |\n|---|---|\n" + "".join(rows)


def composites() -> str:
    """The checkpoints with other parts, and the families of their text models."""
    kinds, families = (
        ", ".join(f"`{x}`" for x in names) for names in (COMPOSITES, TEXT_FAMILIES)
    )
    return f"| checkpoint | family of its text model |\n|---|---|\n| {kinds} | {families} |\n"


def mixer_weights() -> str:
    """One row per mixer: its linears, and its weights that are not pruned."""
    rows: dict[str, tuple[dict[str, object], dict[str, object]]] = {}
    for config in (model_of(case).config for case in CASES):
        for mixer in (kind.mixer for kind in config.blocks):
            pruned, kept = rows.setdefault(mixer.name.replace("_", " "), ({}, {}))
            shapes = mixer.shapes(config.hidden_size)
            pruned |= shapes.linears
            kept |= shapes.matrices | shapes.norms | shapes.arrays
    lines = (
        f"| {x} | {' | '.join(map(listed, parts))} |\n"
        for x, parts in rows.items()
        if parts[0]
    )
    return "| mixer | linears | not pruned |\n|---|---|---|\n" + "".join(lines)


def listed(found: Iterable[str]) -> str:
    """Names, as code."""
    return ", ".join(f"`{name}`" for name in found)


def named(name: str) -> Any:
    """A function of the library, or of pico.py, by its full name."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)


def pages() -> dict[Path, str]:
    """Every page as the programs write it, but for what is measured."""
    base_records, pruner_records = bases().values(), pruners().values()
    shown: set[str] = set()
    sections = "\n\n".join(section(*item) for item in commands().items())
    texts = {
        f"fields of {name}": document_fields(name, shown) for name in DOCUMENTS
    } | {
        "commands": f"\n\n{index()}\n\n",
        "options": f"\n\n{sections}\n\n",
        "records of bases": "\n" + "".join(map(of_base, base_records)),
        "records of pruners": "\n" + "".join(map(of_pruner, pruner_records)),
        "modules of bases": f"\n```{{eval-rst}}\n{members(base_records)}```\n",
        "modules of pruners": f"\n```{{eval-rst}}\n{members(pruner_records)}```\n",
        "bases": titles(base_records),
        "pruners": titles(pruner_records),
        "names": f"\n{family_names()}",
        "composites": f"\n{composites()}",
        "refused": f"\n{refused()}",
        "mixers": f"\n{mixer_weights()}",
    }
    names = ("api", "bases", "cli", "families", "json", "names", "pruners")
    paths = [DOCS / "reference" / f"{name}.md" for name in names]
    made = {}
    for path in (*paths, DOCS / "index.md", ROOT / "README.md", *TUTORIAL):
        page = path.read_text("utf-8")
        sources = (x for x in regions(page) if x.startswith("source "))
        own = {
            x: f"\n```text\n{getsource(named(x.removeprefix('source '))).rstrip()}\n```\n"
            for x in sources
        }
        made[path] = filled(page, texts | own)
    return made


if __name__ == "__main__":
    asked = sys.argv[1:]
    for path, page in pages().items():
        if not asked or path.stem in asked:
            path.write_text(page, "utf-8")
    if "families" in asked:
        fill(FAMILIES_PAGE, {"families": f"\n{families_table()}"})
