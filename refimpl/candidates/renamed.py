"""The steps of a case under the names of another program, for the tools that its porters have."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np

from refimpl.candidates.names import NAME_MAPS, read_names
from refimpl.model.attention import merge_heads
from refimpl.model.ops import Array
from refimpl.oracle.case import Case
from refimpl.storage.files import whole


def renamed_steps(case: Case, names: Path | None) -> dict[str, tuple[str, Array]]:
    """Names and arrays of a program by step; of one sequence without its axis.

    A step without an output of its own, as in a fused projection, is left out.
    """
    if names is None:
        return {step: (step, x) for step, x in case.expected.items()}
    read = NAME_MAPS.get(str(names))
    found: dict[str, tuple[str, Array]] = {}
    for step, source in (read(case.model) if read else read_names(names, case)).items():
        if step in case.expected and len(source.layout.rows) < 2:
            x = case.expected[step]
            if source.paired:
                x = x.reshape(*x.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(x.shape)
            x = merge_heads(x) if x.ndim == 4 else x
            name = next((name for name in source.names if ":" not in name), source.names[0])
            found[step] = name, x[0] if len(x) == 1 else x
    return found


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as `.npz`, whole or not at all; an existing file is replaced."""
    content = BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # its stubs name a keyword of newer versions
    with whole(path) as new:
        new.write_bytes(content.getbuffer())
