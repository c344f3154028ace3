"""What a figure was measured on: the machine, its libraries, and who else was using it."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("refimpl", "numpy", "torch", "transformers", "onnx", "onnxruntime", "ml_dtypes")


def machine() -> dict[str, Any]:
    """Facts about this machine, as far as Linux tells them."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in cpu if line.startswith("flags")), "")
    model = next((line for line in cpu if line.startswith("model name")), ":unknown")
    return {
        "cpu": model.split(":", 1)[1].strip(),
        "vector": next((f for f in ("avx512f", "avx2", "avx") if f in flags.split()), "other"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": kernel_bytes("/proc/meminfo", "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "blas": _blas(),
    }


def load() -> list[float]:
    """Mean number of running programs over the last 1, 5 and 15 minutes."""
    return [round(x, 2) for x in os.getloadavg()]


def memory_of(key: str) -> int:
    """Bytes of this process: resident now (VmRSS), or at most so far (VmHWM), mapped pages too."""
    return kernel_bytes("/proc/self/status", key)


def kernel_bytes(path: str, key: str) -> int:
    """A number of bytes in one of the kernel's files."""
    lines = Path(path).read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def version_of(name: str) -> str | None:
    """The version of a package, if it is installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _blas() -> list[str]:
    """NumPy's BLAS, as loaded."""
    import numpy  # noqa: F401  # loads it
    from threadpoolctl import threadpool_info

    return [
        f"{lib['internal_api']} {lib['version']} ({lib.get('architecture')}, "
        f"{lib['num_threads']} threads)"
        for lib in threadpool_info()
        if lib["user_api"] == "blas"
    ]
