"""The tables of graphs: what was written, and how another computation compares, a row per run."""

from typing import Any

from refimpl.loading.files.documents import plain
from refimpl.onnx.export import Exported
from refimpl.onnx.validate import Validation
from refimpl.oracle.check import Report
from refimpl.oracle.measures import stage_of
from refimpl.running.file_system import MIB
from refimpl.show.header import counted, fitting, model_facts, page, token_facts
from refimpl.show.oracle import report_document, steps_table, verdict_lines

VALIDATION_FORMAT = 3  # of `validate --json`


def validation_table(validation: Validation) -> str:
    """A row per run, the verdict, and the first wrong step with its usual causes."""
    graph, runs = validation.graph, {_name(x): x.steps for x in validation.reports}
    facts = {
        "model": model_facts(validation.model, validation.family, validation.num_blocks),
        "graph": ["recorded here, with every trace point" if graph is None else graph],
        "against": [validation.ran],
        "tokens": token_facts(validation.tokens),
    }
    if validation.verdict == "pass":
        steps = counted(sum(map(len, runs.values())), "step")
        said = [f"passes: {steps} in {counted(len(runs), 'run')}"]
    else:
        first = next(x for x in validation.reports if x.verdict == validation.verdict)
        verdict, *causes = verdict_lines(first)
        said = [f"{_name(first)}: {verdict}", *causes]
    lines = [part for line in (*said, *validation.notes) for part in fitting(line)]
    return page(facts, steps_table("run", runs).lines(), lines)


def validation_document(validation: Validation) -> dict[str, Any]:
    """A validation as one JSON document; an error that is no number is null."""
    facts = {name: x for name, x in vars(validation).items() if name != "reports"}
    runs = []
    for report in validation.reports:
        content = report_document(report, "")
        shared = {name: content[name] for name in ("dtype", "verdict", "first", "steps")}
        runs.append({"shape": _shape(report), **shared})
    facts |= {"verdict": validation.verdict, "runs": runs}
    document: dict[str, Any] = plain({"format": VALIDATION_FORMAT, **facts})
    return document


def _name(report: Report) -> str:
    """What was run, in which dtype, on token ids of which shape."""
    return f"{stage_of(report.steps[0].step)} {report.dtype} {_shape(report)}"


def _shape(report: Report) -> list[int]:
    return list(report.case.inputs["token_ids"].shape)


def export_table(exported: Exported) -> str:
    """What was written, a line per fact."""
    facts, count = exported.metadata, counted(exported.tensors, "tensor")
    zeros, prunable = (int(facts[f"prunable_{name}"]) for name in ("zeros", "weights"))
    graph, data = (f"{x / MIB:,.2f} MiB" for x in (exported.graph_bytes, exported.data_bytes))
    lines = {
        "model": [
            facts["model"],
            f"family {facts['family']}",
            f"{zeros:,} of {prunable:,} prunable weights zero ({zeros / prunable:.2%})",
        ],
        "graph": [f"{exported.graph}, {graph}", f"opset {exported.opset}"],
        "computes": [f"token_ids to {facts['outputs']}", facts["dtype"]],
        "weights": [f"{count} in {exported.data}, {data}"],
    }
    return page(lines)
