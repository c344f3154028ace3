"""A model's graph as a file: with its weights in it, beside it, or left where they are."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from refimpl.errors import RefimplError
from refimpl.method.perturbation import Perturbation
from refimpl.model.kernels import PLAIN
from refimpl.model.model import Model
from refimpl.onnx.recording import fused as fused_operators
from refimpl.onnx.recording.experiment_graph import experiment_described, experiment_graph
from refimpl.onnx.recording.external_data import check_finite, distinct, pieces, write_data
from refimpl.onnx.recording.graph import OPSET, Graph
from refimpl.onnx.recording.model_graph import Outputs, described, recorded
from refimpl.onnx.recording.weight_entries import Enter, copied, declared, referenced
from refimpl.onnx.target import (
    check_output,
    check_reference,
    check_room,
    default_output,
    whole_graph,
)

FORMAT = 1  # of `export --json`
Weights = Literal["external", "reference", "embedded"]
OPSETS = 18, 25  # ReduceMean takes its axes as an input from 18 on; 25 is what was tried


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        graph: The graph's file.
        graph_bytes: Its size.
        data: The data file beside it; None where there is none.
        data_bytes: Its size, 0 where there is none.
        weights: How weights enter.
        outputs: "logits", "trace" or "experiment".
        dtype: Dtype of the computation.
        opset: Version of ONNX's operators.
        fused: Whether some steps are one operator each.
        metadata: What the graph says about itself.
        nodes: Nodes of the graph, a call of a function being one.
        functions: Nodes of each function.
        tensors: Weights that were written or referred to, each once.
        sparse: Of which so many are sparse.
        dense_bytes: Size of all weights written with their zeros.
        written_bytes: Size of what was written of them, indices included.
    """

    graph: Path
    graph_bytes: int
    data: Path | None
    data_bytes: int
    weights: Weights
    outputs: str
    dtype: str
    opset: int
    fused: bool
    metadata: Mapping[str, str]
    nodes: int
    functions: Mapping[str, int]
    tensors: int
    sparse: int
    dense_bytes: int
    written_bytes: int


def export(
    model: Model,
    out: str | Path | None = None,
    *,
    dtype: npt.DTypeLike = np.float32,
    weights: Weights = "external",
    outputs: Outputs = "logits",
    experiment: Perturbation | None = None,
    opset: int | None = None,
    fused: bool = False,
    sparse: bool = True,
    force: bool = False,
) -> Exported:
    """Write a model as an ONNX graph, which appears whole or not at all.

    Args:
        model: From `read_model`; its files are not touched.
        out: The graph's file, `*.onnx`; beside the weights if None.
        dtype: Dtype of the computation, float32 or float64.
        weights: "external": in one file beside the graph, `{out}.data`, in `dtype`; "reference":
            none is copied, the graph points into the model's own files, in whose folder it must
            lie; "embedded": in the graph's own file, which holds 2 GiB.
        outputs: "logits", or "trace" for every trace point.
        experiment: How states are pushed and measured, to write the perturbation experiment in
            place of the model; its eta, draws and seed belong to the graph's inputs.
        opset: Version of ONNX's operators; 21, or 23 where fused.
        fused: Whether attention, rotary positions and RMS norms are one operator each; float32
            only, from opset 23 on.
        sparse: Whether weights are written without their zeros where that is smaller.
        force: Whether an existing output is replaced.

    Returns:
        What was written.

    Raises:
        RefimplError: An output that exists, is an input, or cannot be written; a disk without room;
            weights that are NaN, Inf or beyond the dtype; a graph of over 2 GiB; files that cannot
            be referred to; operators that the opset does not have; an experiment by pruning.

    Source:
        ours; onnx (a peer) checks the file by its path before it gets its name.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from refimpl import read_model
        >>> with TemporaryDirectory() as folder:
        ...     made = export(read_model("fixtures/llama"), f"{folder}/llama.onnx")
        ...     made.data.name, list(made.functions)
        ('llama.onnx.data', ['block'])
    """
    out, dtype = default_output(model) if out is None else Path(out), np.dtype(dtype)
    data = out.with_name(f"{out.name}.data") if weights == "external" else None
    opset = (fused_operators.OPSET if fused else OPSET) if opset is None else opset
    kernels = fused_operators.FUSED if fused else PLAIN
    _check_request(dtype, opset, fused)
    check_output(model, out, data, force)
    reference = weights == "reference"
    if reference:
        check_reference(model, out)
    found = pieces(model, dtype, sparse and not reference)
    check_room(out, {} if reference else found, weights)
    enter = referenced(model, dtype) if reference else copied(found, data.name if data else None)
    few = any(piece.sparse for piece in found.values())

    def record(enter: Enter) -> Graph:
        if experiment is None:
            return recorded(model, dtype, enter, outputs, opset, kernels)
        return experiment_graph(model, experiment, dtype, enter, opset, kernels)

    graph = record(enter)
    if experiment is None:
        proto = described(graph, model, dtype, outputs)
    else:
        proto = experiment_described(graph, model, experiment, dtype)
    with whole_graph(out, data) as part:
        if data is not None:
            write_data(part.with_name(data.name), found)
        elif reference:
            check_finite(found)
        _save(proto, part)
        onnx.checker.check_model(str(part), full_check=not few)
        if few:  # onnx infers shapes through dense tensors only
            onnx.checker.check_model(record(declared(found)).model(), full_check=True)
    once = distinct(found)
    return Exported(
        out,
        out.stat().st_size,
        data,
        data.stat().st_size if data else 0,
        weights,
        outputs if experiment is None else "experiment",
        dtype.name,
        opset,
        fused,
        {entry.key: entry.value for entry in proto.metadata_props},
        len(proto.graph.node),
        {function.name: len(function.node) for function in proto.functions},
        len({piece.weight.stored.name for piece in once} if reference else once),
        sum(piece.sparse for piece in once),
        sum(piece.dense_bytes for piece in once),
        0 if reference else sum(piece.value_bytes + piece.index_bytes for piece in once),
    )


def exported_document(made: Exported) -> dict[str, Any]:
    """What `refimpl export --json` prints.

    Args:
        made: What was written.

    Returns:
        Numbers, strings and objects.
    """
    return {
        "format": FORMAT,
        **asdict(made),
        "graph": str(made.graph),
        "data": None if made.data is None else str(made.data),
    }


def _check_request(dtype: np.dtype[np.generic], opset: int, fused: bool) -> None:
    """Refuse what no graph can be."""
    if dtype not in (np.float32, np.float64):
        raise RefimplError(f"dtype {dtype}", "float32 or float64", "choose one of these")
    if fused and dtype != np.float32:
        raise RefimplError(
            f"--fused with {dtype}",
            "float32: RotaryEmbedding has no float64, and RMSNormalization computes it in float32",
            "leave --fused away, or use --dtype float32",
        )
    low, high = (
        fused_operators.OPSET if fused else OPSETS[0],
        min(OPSETS[1], onnx.defs.onnx_opset_version()),
    )
    if not low <= opset <= high:
        raise RefimplError(
            f"opset {opset}{' with --fused' if fused else ''}",
            f"{low} to {high} (onnx {onnx.__version__})",
            "leave --opset away, or use another version of onnx",
        )


def _save(proto: onnx.ModelProto, path: Path) -> None:
    """Write a graph's own file, and bring it to the disk."""
    with path.open("wb") as file:
        file.write(proto.SerializeToString(deterministic=True))
        file.flush()
        os.fsync(file.fileno())
