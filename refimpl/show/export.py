"""The table of an export: what was written of a model as a graph."""

from refimpl.onnx.export import Exported
from refimpl.onnx.recording.model_graph import PERTURBATION_OPTIONS
from refimpl.running.memory import MIB
from refimpl.show.header import counted, wrapped

WEIGHT_LOCATIONS = {
    "external": "in a file beside the graph",
    "embedded": "in the graph's file",
}


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
        "computes": [*_computes(exported), exported.dtype],
        "weights": [f"{count} {WEIGHT_LOCATIONS[exported.weights]}"],
    }
    if exported.data is not None:
        lines["data"] = [f"{exported.data}, {_size(exported.data_bytes)}"]
    return "\n".join(wrapped(lines)) + "\n"


def _computes(exported: Exported) -> list[str]:
    """The inputs and outputs of the graph."""
    if exported.outputs != "experiment":
        return [f"token_ids to {exported.outputs}"]
    options = [name for name in PERTURBATION_OPTIONS if exported.metadata[name] != "exact"]
    return [
        "token_ids and noise to drift, alignment and absorption coefficients",
        *(f"{name.replace('_', ' ')} {exported.metadata[name]}" for name in options),
    ]


def _size(size: int) -> str:
    """Bytes for people."""
    return f"{size / MIB:,.2f} MiB"
