"""Open a graph in onnxruntime, on a GPU or the CPU; a graph as a candidate of the oracle."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.arguments import Device
from refimpl.errors import RefimplError, need
from refimpl.model.ops import Array
from refimpl.onnx.recording.model_graph import TOKENS
from refimpl.running.threads import thread_count

RunGraph = Callable[[Mapping[str, Array]], Mapping[str, Array]]  # inputs to outputs, by our names
CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# The default of CUDA multiplies float32 with ten bits.
PROVIDERS = {CUDA: [(CUDA, {"use_tf32": "0"}), (CPU, {})], CPU: [(CPU, {})]}


def onnxruntime() -> Any:
    """The library, without the telemetry that it sends since 1.32.

    It reads the variable when it is imported, so nothing else in the package imports it.
    """
    need("onnx", "onnxruntime")
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime as library

    return library


@dataclass(frozen=True)
class Session:
    """A graph that is ready to run, and where; its runtime reads the weights in place."""

    run: Callable[..., dict[str, Array]]
    runtime: str  # with its version and device, such as "onnxruntime 1.32.0, cpu"
    weights: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A graph that gives trace points; all its sequences have one length, unless that is None."""

    outputs: RunGraph
    runtime: str
    dtype: str
    points: tuple[str, ...]
    length: int | None = None

    def run(self, ids: Array) -> Mapping[str, Array]:
        """Compute the trace points of token ids [B, S]."""
        if self.length not in (None, ids.shape[1]):
            raise RefimplError(
                f"a graph for sequences of {self.length} tokens, and these have {ids.shape[1]}",
                f"sequences of {self.length} tokens, or a graph for any length",
                f"use `seq_len={self.length}`",
            )
        return self.outputs({TOKENS: ids})


def open_session(
    graph: bytes | str | Path,
    device: Device = "auto",
    *,
    threads: int | None = None,
    weights: Mapping[str, Array] | None = None,
) -> Session:
    """Open a graph, itself or its file; weights replace its external tensors.

    "auto" is CUDA if onnxruntime has it and loads the graph with it, else the CPU.
    """
    if uses_gpu(device):
        try:
            return _open(graph, CUDA, threads, weights)
        except RefimplError:
            if device != "auto":
                raise
    return _open(graph, CPU, threads, weights)


def uses_gpu(device: Device) -> bool:
    """Whether CUDA may be used; refuses "cuda" where onnxruntime does not have it."""
    installed = CUDA in onnxruntime().get_available_providers()
    if device == "cuda" and not installed:
        raise RefimplError(
            f"`device=cuda`: {CUDA} is not installed",
            "a GPU, and an onnxruntime that supports it",
            "pip install onnxruntime-gpu in place of onnxruntime, or use `device=cpu`",
        )
    return installed and device != "cpu"


def _open(
    graph: bytes | str | Path,
    provider: str,
    threads: int | None,
    weights: Mapping[str, Array] | None,
) -> Session:
    """Open a graph with one provider; the CPU runs the operators that it does not support."""
    ort = onnxruntime()
    ort.set_default_logger_severity(4)  # errors are raised
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = thread_count(threads)
    # Not all fusions of the higher levels support float64.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # Run nodes in the recorded order: others delay what only an output needs, and hold its inputs.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    arrays = {name: np.ascontiguousarray(array) for name, array in (weights or {}).items()}
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    if values:
        options.add_external_initializers(list(arrays), values)
    source = graph if isinstance(graph, bytes) else str(graph)
    runtime = f"onnxruntime {ort.__version__}"
    opened = partial(ort.InferenceSession, providers=PROVIDERS[provider], enable_fallback=0)
    session = _guarded(runtime, "load", lambda: opened(source, options))
    if provider not in session.get_providers():
        raise RefimplError(
            f"{runtime} does not use {provider}",
            "a device with its libraries",
            "use `device=auto` or cpu",
        )
    every = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = list(outputs or every)
        with np.errstate(all="ignore"):  # an overflow shows in the values
            values = _guarded(runtime, "run", lambda: session.run(names, dict(inputs)))
        return dict(zip(names, values, strict=True))

    return Session(run, f"{runtime}, {provider.removesuffix('ExecutionProvider').lower()}", arrays)


def _guarded(runtime: str, verb: str, action: Callable[[], Any]) -> Any:
    """Load or run a graph in a runtime, whose exceptions have no common class."""
    try:
        return action()
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise RefimplError(
            f"{runtime} cannot {verb} the graph: {why}",
            "a graph and inputs that the runtime supports",
            "read the reason above; try `device=cpu`, or another version of the runtime",
        ) from error
