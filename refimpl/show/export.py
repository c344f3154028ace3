"""What was written of a model as a graph."""

from refimpl.onnx.export import Exported
from refimpl.show.header import MIB, counted, wrapped

WEIGHTS = {
    "external": "in a file beside the graph",
    "reference": "in the model's own files, by reference",
    "embedded": "in the graph's file",
}


def export_table(made: Exported) -> str:
    """What was written, a line per fact.

    Args:
        made: From `refimpl.onnx.export.export`.

    Returns:
        Text, lines ended by newlines.
    """
    facts, count = made.metadata, counted(made.tensors, "tensor")
    zeros, prunable = (int(facts[f"prunable_{name}"]) for name in ("zeros", "weights"))
    lines = {
        "model": [
            facts["model"],
            f"family {facts['family']}",
            f"{zeros:,} of {prunable:,} prunable weights zero ({zeros / prunable:.2%})",
        ],
        "graph": [
            f"{made.graph}, {_size(made.graph_bytes)}",
            counted(made.nodes, "node"),
            *(f"function {name} of {size:,} nodes" for name, size in made.functions.items()),
        ],
        "operators": [
            f"opset {made.opset}",
            *(["attention, rotary positions and RMS norms fused"] if made.fused else []),
        ],
        "computes": [*_computes(made), made.dtype],
        "weights": [f"{count} {WEIGHTS[made.weights]}"],
    }
    if made.data is not None:
        lines["data"] = [f"{made.data}, {_size(made.data_bytes)}"]
    if made.sparse:
        lines["sparse"] = [
            f"{made.sparse} of {count} without their zeros",
            f"{_size(made.written_bytes)} with indices, in place of {_size(made.dense_bytes)}",
        ]
    return (
        "\n".join(line for label, known in lines.items() for line in wrapped(label, known)) + "\n"
    )


def _computes(made: Exported) -> list[str]:
    """What the graph makes of what."""
    if made.outputs != "experiment":
        return [f"token_ids to {made.outputs}"]
    pushes = ("noise_scale", "noise_shape", "norm", "sink")
    return [
        "token_ids and noise to drift, alignment and absorption coefficients",
        *(f"{name.replace('_', ' ')} {made.metadata[name]}" for name in pushes),
    ]


def _size(size: int) -> str:
    """Bytes for people."""
    return f"{size / MIB:,.2f} MiB"
