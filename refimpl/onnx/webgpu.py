"""onnxruntime's WebGPU provider: GPU code, which a software adapter runs without a GPU."""

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from functools import cache
from typing import Any

from refimpl.errors import RefimplError

PROVIDER = "WebGpuExecutionProvider"
# An adapter leaves to the CPU the drift, whose sums are float64, which tokens each expert gets, and
# in graphs for any length what depends on positions. These operators are products, softmax, norms
# and activations: a graph that leaves them to the CPU was not computed by shaders.
COMPUTED = {
    "MatMul", "Gemm", "Einsum", "Softmax", "Attention", "RMSNormalization", "LayerNormalization",
    "ReduceMean", "ReduceMax", "Exp", "Tanh", "Erf", "Sigmoid",
}  # fmt: skip


@cache
def adapters() -> list[Any]:
    """The provider's adapters; a software adapter is allowed."""
    import onnxruntime  # by `session` before
    import onnxruntime_ep_webgpu

    os.environ.setdefault("ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER", "1")
    library = onnxruntime_ep_webgpu.get_library_path()
    onnxruntime.register_execution_provider_library("refimpl.webgpu", library)
    return [x for x in onnxruntime.get_ep_devices() if x.ep_name == PROVIDER]


def open_with(graph: bytes | str, options: Any) -> Any:
    """A session on the first adapter."""
    import onnxruntime

    options.add_provider_for_devices(adapters()[:1], {})
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with _silent():  # Dawn prints what it thinks of the adapter
        return onnxruntime.InferenceSession(graph, options)


def description(session: Any) -> str:
    """The adapter and what ran on it: "llvmpipe, software; 286 of 301 nodes, others: 4 Mul".

    Refuses a graph of which the adapter has no kernel for all that a model computes.
    """
    parts = session.get_provider_graph_assignment_info()
    nodes = [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]
    left = Counter(op for provider, op in nodes if provider != PROVIDER)
    if missing := sorted(COMPUTED.intersection(left)):
        raise RefimplError(
            f"--device webgpu: {', '.join(f'{left[op]} {op}' for op in missing)} would run on the "
            "CPU: the provider has no kernel for them",
            "a graph whose products, softmax and norms run as shaders",
            "use --dtype float32, and a graph that refimpl export wrote",
        )
    device = adapters()[0].device
    software = ", software" if str(device.type).endswith("CPU") else ""
    others = ", ".join(f"{count} {op}" for op, count in sorted(left.items()))
    text = f"{_vulkan_name() or device.vendor}{software}; {len(nodes) - left.total()} of"
    return f"{text} {len(nodes)} nodes" + (f", on the CPU {others}" if others else "")


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches the standard error of the process."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _vulkan_name() -> str:
    """Name of the only Vulkan device; nothing if there are several, or no loader of Vulkan."""
    try:
        vulkan = ctypes.CDLL(find_library("vulkan") or "libvulkan.so.1")
    except OSError:
        return ""
    # VkInstanceCreateInfo: its kind is 1, and all else is zero.
    information, instance = (ctypes.c_uint64 * 8)(1), ctypes.c_void_p()
    if vulkan.vkCreateInstance(information, None, ctypes.byref(instance)):
        return ""
    device, count = ctypes.c_void_p(), ctypes.c_uint32(1)
    some = vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), ctypes.byref(device))
    # VkPhysicalDeviceProperties: five numbers of 32 bits, then the name; less than 4 KiB.
    properties = ctypes.create_string_buffer(4096)
    if count.value and not some:  # else there are more
        vulkan.vkGetPhysicalDeviceProperties(device, properties)
    vulkan.vkDestroyInstance(instance, None)
    return properties.raw[20:276].split(b"\0")[0].decode(errors="replace")
