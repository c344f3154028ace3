"""How the numbers of a report were made: parameters, runs and versions of every file."""

from collections.abc import Mapping
from html import escape
from typing import Any

from refimpl.report.html import facts_html
from refimpl.report.inputs import ReportInput, ReportInputs
from refimpl.running.memory import MIB

PARTS = ("blocks", "sweep", "linears", "format")
NO_FACTS = ("windows", "questions", "linear_pruned", "perplexity", "nats", "bits", "acc", "stderr")


def provenance_html(inputs: ReportInputs) -> str:
    """Parameters, run and versions of every file."""
    cards = []
    every: tuple[ReportInput, ...] = (*inputs.scored, *inputs.pruned, *inputs.evaluated)
    for x in every:
        facts = facts_html(_facts(x.file.document, x.file.sha256))
        cards.append(
            f'<article class="card"><h3>{escape(x.name)}</h3>\n'
            f"<p>{x.kind}, {escape(x.file.path.name)}</p>\n{facts}\n</article>"
        )
    return '<div class="grid loose">\n' + "\n".join(cards) + "\n</div>"


def _facts(document: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """All fields of a file that are not measurements, by name and without nesting."""
    facts: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and key not in ("linears", "base_options"):
            for name, inner in value.items():
                if not name.startswith(NO_FACTS):
                    facts[f"{key} {name}".replace("_", " ")] = _with_unit(name, inner)
        elif key not in PARTS:
            facts[key.replace("_", " ")] = value
    if "linears" in document:
        shapes = document["linears"].items()
        facts["linears"] = ", ".join(f"{name} {out} x {width}" for name, (out, width) in shapes)
    return facts | {"sha256 of the file": digest}


def _with_unit(name: str, value: Any) -> Any:
    """Bytes and seconds with their unit."""
    if isinstance(value, int | float) and "memory" in name:
        return f"{value / MIB:,.6g} MiB"
    return f"{value:.4g} s" if isinstance(value, int | float) and name == "seconds" else value
