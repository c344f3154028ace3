"""Memory: how much a run may use for residual states, and how much it has used."""

from contextlib import suppress

from refimpl.arguments import require
from refimpl.errors import RefimplError

MIB = 1 << 20
DEFAULT_MEMORY = 2048 * MIB
FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_memory(size: str | int | None) -> int:
    """Bytes of a size such as 1000, "512M" or "1.5GiB"; of None, the free memory, at most 2 GiB."""
    require(size, str | int | None, "memory")
    if size is None:
        return min(DEFAULT_MEMORY, free_memory())
    number = str(size).strip().upper().removesuffix("IB").removesuffix("B")
    unit = number[-1:] if number[-1:] in FACTORS else ""
    try:
        parsed = int(float(number.removesuffix(unit)) * FACTORS[unit])
    except (ValueError, OverflowError):
        parsed = 0
    if parsed <= 0:
        raise RefimplError(
            f"memory {size!r}", "a size such as 512M or 1.5G", "use for example --memory 1G"
        )
    return parsed


def free_memory() -> int:
    """Bytes that are available without swapping."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux
        return DEFAULT_MEMORY


def peak_memory() -> int | None:
    """The largest resident memory of this process so far in bytes, mapped pages included."""
    with suppress(OSError, StopIteration), open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    try:
        import resource
        import sys
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
