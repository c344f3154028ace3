"""Which model it was: what every number depends on, whatever is computed."""

from hashlib import sha256
from typing import Any

from refimpl.model.model import Model
from refimpl.running.provenance import versions


def identity(model: Model) -> dict[str, Any]:
    """What every number depends on, whatever is computed: the model's files, and the versions.

    Args:
        model: From `read_model`.

    Returns:
        What belongs into the first line of a `Part`.
    """
    return {
        "model": model.name,
        "files": [list(file) for file in stamps(model)],
        "config": sha256(repr(sorted(model.config_file.items())).encode()).hexdigest(),
        "versions": versions(),
    }


def stamps(model: Model) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of each of a model's files."""
    stats = [(file.path.name, file.path.stat()) for file in model.files]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
