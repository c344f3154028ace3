"""The table of an export: what was written of a model as a graph."""

from collections.abc import Mapping

from refimpl.onnx.export import Exported
from refimpl.onnx.recording.model_graph import PERTURBATION_OPTIONS
from refimpl.running.memory import MIB
from refimpl.show.header import counted, wrapped


def export_table(exported: Exported) -> str:
    """What was written, a line per fact."""
    facts, count = exported.metadata, counted(exported.tensors, "tensor")
    zeros, prunable = (int(facts[f"prunable_{name}"]) for name in ("zeros", "weights"))
    lines = {
        "model": [
            facts["model"],
            f"family {facts['family']}",
            f"{zeros:,} of {prunable:,} prunable weights zero ({zeros / prunable:.2%})",
        ],
        "graph": [
            f"{exported.graph}, {_size(exported.graph_bytes)}",
            counted(exported.nodes, "node"),
            *(f"function {name} of {size:,} nodes" for name, size in exported.functions.items()),
        ],
        "operators": [f"opset {exported.opset}"],
        "computes": [*_computes(facts), facts["dtype"]],
        "weights": [f"{count} in {exported.data}, {_size(exported.data_bytes)}"],
    }
    return "\n".join(wrapped(lines)) + "\n"


def _computes(facts: Mapping[str, str]) -> list[str]:
    """The inputs and outputs of the graph."""
    if facts["outputs"] != "experiment":
        return [f"token_ids to {facts['outputs']}"]
    options = [name for name in PERTURBATION_OPTIONS if facts[name] != "exact"]
    return [
        "token_ids and noise to drift, alignment and absorption coefficients",
        *(f"{name.replace('_', ' ')} {facts[name]}" for name in options),
    ]


def _size(size: int) -> str:
    """Bytes for people."""
    return f"{size / MIB:,.2f} MiB"
