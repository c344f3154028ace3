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

from refimpl.errors import RefimplError, need

PROVIDER = "WebGpuExecutionProvider"
SOFTWARE = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
# An adapter leaves to the CPU shapes, the table of rotary angles, whose positions are integers, and
# the drift, whose sums are float64. One of these operators is a product, a softmax, a norm or an
# activation: a graph that leaves it to the CPU was not computed by shaders.
COMPUTED = {
    "MatMul", "Gemm", "Einsum", "Softmax", "Attention", "RMSNormalization", "LayerNormalization",
    "ReduceMean", "ReduceMax", "Exp", "Tanh", "Erf", "Sigmoid",
}  # fmt: skip
RECORDED = "session.record_ep_graph_assignment_info"


@cache
def adapters() -> list[Any]:
    """The provider's adapters, of which there is at least one; a software adapter is allowed."""
    need("webgpu", "onnxruntime_ep_webgpu")
    import onnxruntime
    import onnxruntime_ep_webgpu

    os.environ.setdefault(SOFTWARE, "1")
    onnxruntime.set_default_logger_severity(4)  # what fails is raised, too
    try:
        library = onnxruntime_ep_webgpu.get_library_path()
        onnxruntime.register_execution_provider_library("refimpl.webgpu", library)
        devices = [x for x in onnxruntime.get_ep_devices() if x.ep_name == PROVIDER]
        if not devices:
            raise RuntimeError("it finds no device")
    except Exception as error:  # of onnxruntime, and of the plugin
        raise _unusable(error) from error
    return devices


def open_with(graph: bytes | str, options: Any) -> Any:
    """A session on the first adapter, which must have a kernel for all that a model computes."""
    import onnxruntime

    options.add_provider_for_devices(adapters()[:1], {})
    options.add_session_config_entry(RECORDED, "1")
    with _silent():  # Dawn prints what it thinks of the adapter
        session = onnxruntime.InferenceSession(graph, options)
    if PROVIDER not in session.get_providers():
        raise _unusable("no adapter opens")
    left = Counter(op for provider, op in _nodes(session) if provider != PROVIDER)
    if missing := sorted(COMPUTED.intersection(left)):
        raise RefimplError(
            f"--device webgpu: {', '.join(f'{left[op]} {op}' for op in missing)} would run on the "
            "CPU: the provider has no kernel for them",
            "a graph whose products, softmax and norms run as shaders",
            "use --dtype float32, and a graph that refimpl export wrote",
        )
    return session


def description(session: Any) -> str:
    """The adapter and what ran on it: "llvmpipe, software; 286 of 301 nodes, others: 4 Mul"."""
    kind = str(adapters()[0].device.type).rpartition(".")[2]
    name = _vulkan_name() or adapters()[0].device.vendor
    software = ", software" if kind == "CPU" else ""
    nodes = _nodes(session)
    left = Counter(op for provider, op in nodes if provider != PROVIDER)
    others = ", ".join(f"{count} {op}" for op, count in sorted(left.items()))
    text = f"{name}{software}; {len(nodes) - left.total()} of {len(nodes)} nodes"
    return f"{text}, on the CPU {others}" if others else text


def _nodes(session: Any) -> list[tuple[str, str]]:
    """Provider and operator of every node."""
    parts = session.get_provider_graph_assignment_info()
    return [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]


def _unusable(reason: object) -> RefimplError:
    return RefimplError(
        f"--device webgpu: {' '.join(str(reason).split())}",
        "an adapter of WebGPU: a GPU with a Vulkan, Metal or Direct3D driver, or a software one",
        "install a driver, such as Debian's mesa-vulkan-drivers, or use --device cpu",
    )


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
    information, instance, count = (ctypes.c_uint64 * 8)(1), ctypes.c_void_p(), ctypes.c_uint32()
    if vulkan.vkCreateInstance(information, None, ctypes.byref(instance)):
        return ""
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    device, one = ctypes.c_void_p(), ctypes.c_uint32(1)
    # VkPhysicalDeviceProperties: five numbers of 32 bits, then the name; less than 4 KiB.
    properties = ctypes.create_string_buffer(4096)
    if count.value == 1:
        vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(one), ctypes.byref(device))
        vulkan.vkGetPhysicalDeviceProperties(device, properties)
    vulkan.vkDestroyInstance(instance, None)
    return properties.raw[20:276].split(b"\0")[0].decode(errors="replace")
