"""Open a graph in onnxruntime, on a GPU or the CPU."""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.arguments import Device
from refimpl.errors import RefimplError, need
from refimpl.model.ops import Array
from refimpl.onnx import webgpu
from refimpl.onnx.recording.graph import Graph
from refimpl.running.threads import thread_count

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
# The default of CUDA multiplies float32 with ten bits.
PROVIDERS = {CUDA: [(CUDA, {"use_tf32": "0"}), (CPU, {})], CPU: [(CPU, {})]}
WANTED = {  # and what to do without
    "cuda": (
        "a GPU, and an onnxruntime that supports it",
        "pip install onnxruntime-gpu in place of onnxruntime, or use --device auto or cpu",
    ),
    "webgpu": (
        "a GPU with a driver of Vulkan, Metal or Direct3D, or a program in its place",
        "install a driver, such as Debian's mesa-vulkan-drivers, or use --device cpu",
    ),
}


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
    device: str
    versions: Mapping[str, str]
    weights: Mapping[str, Array] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """Runtime and device, such as "onnxruntime 1.22.0, cpu"."""
        versions = (f"{name} {version}" for name, version in self.versions.items())
        return ", ".join([*versions, self.device])


def open_session(
    graph: bytes | str | Path,
    device: Device = "auto",
    *,
    threads: int | None = None,
    weights: Mapping[str, Array] | None = None,
) -> Session:
    """Open a graph, itself or its file; weights replace its external tensors.

    "auto" is CUDA if that works and loads the graph, else the CPU; an adapter of "webgpu" may be a
    program.
    """
    for provider in check_device(device):
        try:
            return _open(graph, provider, threads, weights)
        except RefimplError:
            if device != "auto":
                raise
    return _open(graph, CPU, threads, weights)


def check_device(device: Device) -> list[str]:
    """Names of the GPU providers that may be used and that work, best first; by name, one must."""
    library = onnxruntime()
    if device == "cpu":
        return []
    provider, installed = CUDA, library.get_available_providers()
    if device == "webgpu":
        need("webgpu", "onnxruntime_ep_webgpu")
        provider, installed = webgpu.PROVIDER, [webgpu.PROVIDER]
    reason = _reason_against(provider) if provider in installed else "is not installed"
    if reason and device != "auto":
        raise RefimplError(f"--device {device}: {provider} {reason}", *WANTED[device])
    return [] if reason else [provider]


def _open(
    graph: bytes | str | Path,
    provider: str,
    threads: int | None,
    weights: Mapping[str, Array] | None = None,
) -> Session:
    """Open a graph with one provider; the CPU runs the operators that it does not support."""
    ort = onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised
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

    opened: Any = webgpu.open_with
    if provider in PROVIDERS:
        opened = partial(ort.InferenceSession, providers=PROVIDERS[provider], enable_fallback=0)
    session = _guarded(runtime, "load", lambda: opened(source, options))
    if provider not in session.get_providers():
        raise RefimplError(
            f"{runtime} does not use {provider}",
            "a device with its libraries",
            "use --device auto or cpu",
        )
    every = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        names = list(outputs or every)
        with np.errstate(all="ignore"):  # an overflow shows in the values
            values = _guarded(runtime, "run", lambda: session.run(names, dict(inputs)))
        return dict(zip(names, values, strict=True))

    device, about = provider.removesuffix("ExecutionProvider").lower(), ""
    if provider != CPU:
        about = _cuda_name() if provider == CUDA else webgpu.description(session)
    device += f" ({about})" if about else ""
    return Session(run, device, {"onnxruntime": ort.__version__}, arrays)


@cache
def _reason_against(provider: str) -> str:
    """Why a provider does not work, or nothing: many installed providers find no device."""
    onnxruntime().set_default_logger_severity(4)  # its errors are raised, too
    graph, three = Graph(), np.full((2, 2), 3, np.float32)
    x = graph.input("x", np.float32, (2, 2))
    graph.output("y", x @ x)
    try:
        product = _open(graph.model().SerializeToString(), provider, 1).run({"x": three})["y"]
    except RefimplError as error:
        return f"does not work ({error.problem})"
    return "" if (product == 18).all() else f"computes 3 x 3 + 3 x 3 = {product[0, 0]}"


def _guarded(runtime: str, verb: str, action: Callable[[], Any]) -> Any:
    """Load or run a graph in a runtime, whose exceptions have no common class."""
    try:
        return action()
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise RefimplError(
            f"{runtime} cannot {verb} the graph: {why}",
            "a graph and inputs that the runtime supports",
            "read the reason above; try --device cpu, or another version of the runtime",
        ) from error


def _cuda_name() -> str:
    """Name of the first CUDA device by its driver, or nothing without a driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return ""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
    error = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    return "" if error or driver.cuDeviceGetName(name, 256, device) else name.value.decode()
