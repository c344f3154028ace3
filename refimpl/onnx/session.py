"""Opening a graph: in onnxruntime on a GPU or the CPU, or in onnx's own evaluator."""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.onnx import need

Device = Literal["auto", "cuda", "cpu"]
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
GPUS: Mapping[str, Mapping[str, str]] = {
    CUDA: {"use_tf32": "0"},  # by default products of float32 keep ten bits
    "ROCMExecutionProvider": {},
}
NAMES = {CPU: "cpu", CUDA: "cuda", "ROCMExecutionProvider": "rocm"}


@dataclass(frozen=True)
class Session:
    """A graph that is ready to run.

    Args:
        run: Given inputs by name, and the names of the outputs that are wanted (all by default),
            returns outputs by name.
        device: Where it runs, for people: "cpu", or "cuda (NVIDIA H100)".
        versions: Version of the runtime, by its name.
        weights: What the runtime reads where it is, kept alive for as long as the session.
    """

    run: Callable[..., dict[str, Array]]
    device: str
    versions: Mapping[str, str]
    weights: Mapping[str, Array] = field(default_factory=dict)


def open_session(
    graph: bytes | str | Path,
    device: Device = "auto",
    *,
    threads: int | None = None,
    weights: Mapping[str, Array] | None = None,
) -> Session:
    """Open a graph in onnxruntime.

    Args:
        graph: The graph itself, or its file; what it refers to lies beside the file.
        device: "cpu"; "cuda"; or "auto": a GPU where onnxruntime has a provider for one that works
            on this machine and takes the graph, else the CPU.
        threads: On the CPU; one per core if None.
        weights: Arrays for the graph's external tensors, by name, used where they are; none of
            them is looked for in a file.

    Returns:
        The session, which says where it runs.

    Raises:
        RefimplError: onnxruntime is missing, cannot load the graph, or (later) run it; "cuda"
            where that provider is not installed or does not work.

    Source:
        ours; onnxruntime (a peer) by itself goes on without a GPU that it cannot use.

    Example:
        >>> from refimpl.onnx.recording.graph import Graph
        >>> graph = Graph()
        >>> _ = graph.output("y", -graph.input("x", np.float32, ("n",)))
        >>> session = open_session(graph.model().SerializeToString(), "cpu")
        >>> session.run({"x": np.ones(2, np.float32)})["y"].tolist(), session.device
        ([-1.0, -1.0], 'cpu')
    """
    for provider in check_device(device):
        try:
            return _open(graph, provider, threads, weights)
        except RefimplError:
            if device == "cuda":
                raise
    return _open(graph, CPU, threads, weights)


def check_device(device: Device) -> list[str]:
    """Find the GPU providers of onnxruntime that may be used, and that work on this machine.

    Args:
        device: As in `open_session`.

    Returns:
        Their names, best first.

    Raises:
        RefimplError: onnxruntime is missing; "cuda" where that provider is not installed or does
            not work.

    Example:
        >>> check_device("cpu")
        []
    """
    need("onnxruntime")
    import onnxruntime

    installed = onnxruntime.get_available_providers()
    wanted = {"cpu": (), "cuda": (CUDA,), "auto": tuple(GPUS)}[device]
    reasons = {name: _reason_against(name) for name in wanted if name in installed}
    works = [name for name, reason in reasons.items() if not reason]
    if device == "cuda" and not works:
        raise RefimplError(
            f"--device cuda: {CUDA} {reasons.get(CUDA, 'is not installed')}",
            f"a GPU and an onnxruntime for it; installed providers: {', '.join(installed)}",
            "pip install onnxruntime-gpu in place of onnxruntime, or use --device auto or cpu",
        )
    return works


def reference_session(graph: onnx.ModelProto | bytes | str | Path) -> Session:
    """Open a graph in the evaluator that onnx defines its operators with.

    Args:
        graph: The graph itself, or its file; sparse weights cannot be read.

    Returns:
        The session.

    Raises:
        RefimplError: The evaluator cannot load the graph, or (later) run it.

    Example:
        >>> from refimpl.onnx.recording.graph import Graph
        >>> graph = Graph()
        >>> _ = graph.output("y", -graph.input("x", np.float32, ("n",)))
        >>> reference_session(graph.model()).run({"x": np.ones(2, np.float32)})["y"].tolist()
        [-1.0, -1.0]
    """
    whole = str(graph) if isinstance(graph, Path) else graph
    evaluator = _guarded("onnx.reference", "load", lambda: ReferenceEvaluator(whole))

    def run(inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = list(outputs or evaluator.output_names)
        found = _guarded("onnx.reference", "run", lambda: evaluator.run(names, dict(inputs)))
        return dict(zip(names, found, strict=True))

    return Session(run, "cpu", {"onnx": onnx.__version__})


def _open(
    graph: bytes | str | Path,
    provider: str,
    threads: int | None,
    weights: Mapping[str, Array] | None = None,
) -> Session:
    """Open a graph with one provider, the CPU's doing what that one cannot."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.intra_op_num_threads = threads or _cores()
    # The fusions of the levels above are not all made for float64.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # In the order in which it was recorded; else what only an output needs is put off, and kept.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    arrays = {name: np.ascontiguousarray(array) for name, array in (weights or {}).items()}
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    if values:
        options.add_external_initializers(list(arrays), values)
    chosen = [(provider, dict(GPUS.get(provider, {}))), *([] if provider == CPU else [(CPU, {})])]
    whole = graph if isinstance(graph, bytes) else str(graph)
    runtime = f"onnxruntime {onnxruntime.__version__}"
    session = _guarded(
        runtime,
        "load",
        lambda: onnxruntime.InferenceSession(whole, options, chosen, enable_fallback=0),
    )
    if provider not in session.get_providers():
        raise RefimplError(
            f"{runtime} went on without {provider}", "a device and its libraries", "use another"
        )
    known = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = list(outputs or known)
        found = _guarded(runtime, "run", lambda: session.run(names, dict(inputs)))
        return dict(zip(names, found, strict=True))

    device = NAMES[provider] + (f" ({name})" if provider == CUDA and (name := _cuda_name()) else "")
    return Session(run, device, {"onnxruntime": onnxruntime.__version__}, arrays)


def _reason_against(provider: str) -> str:
    """Why a provider does not work, or nothing: many of those installed find no device."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)  # their complaints are raised, too
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (2, 2)) for n in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "try", [x], [y])
    opset = [helper.make_opsetid("", 21)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    three = np.full((2, 2), 3, np.float32)
    try:
        found = _open(model.SerializeToString(), provider, 1).run({"x": three})["y"]
    except RefimplError as error:
        return f"does not work ({error.problem})"
    return "" if (found == 18).all() else f"computes 3 x 3 + 3 x 3 = {found[0, 0]}"


def _guarded(runtime: str, verb: str, action: Callable[[], Any]) -> Any:
    """Do something in a runtime whose exceptions have no common class."""
    try:
        return action()
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise RefimplError(
            f"{runtime} cannot {verb} the graph: {why}",
            "a graph, and inputs, that the runtime takes",
            "read the reason above; --device cpu and another version of the runtime may take it",
        ) from error


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda_name() -> str:
    """Name of the first CUDA device, as its driver gives it; nothing where it cannot be asked."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    done = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    return "" if done or driver.cuDeviceGetName(name, 256, device) else name.value.decode()
