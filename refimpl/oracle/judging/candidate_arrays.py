"""Arrays by name: of a candidate or a case, from memory or from a file."""

from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.ops import Array
from refimpl.model.weight import DTYPES, StoredTensor

CANDIDATE_DTYPES = {  # safetensors' names
    **DTYPES,
    **{f"{x.upper()}{8 * n}": np.dtype(f"<{x}{n}") for x in "iu" for n in (1, 2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),  # of a rotation, which is no step
}


def stored_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a safetensors file, mapped; other dtypes than those compared are refused."""
    file = SafetensorsFile(path)
    if other := [name for name, x in file.tensors.items() if x.dtype not in CANDIDATE_DTYPES]:
        raise RefimplError(
            f"{path}: tensor {other[0]} has dtype {file.tensors[other[0]].dtype}",
            ", ".join(CANDIDATE_DTYPES),
            "write the tensor in the dtype of its computation",
        )
    if not file.tensors:
        return {}
    mapped = np.memmap(path, np.uint8, "r")

    def array(x: StoredTensor) -> Array:
        dtype = CANDIDATE_DTYPES[x.dtype]
        end = x.offset + prod(x.shape) * dtype.itemsize
        return np.asarray(mapped[x.offset : end].view(dtype).reshape(x.shape))

    return {name: array(x) for name, x in file.tensors.items()}


def array_of(value: Any) -> Array:
    """An array, or a torch tensor from any device, as an array; torch is not imported."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # which NumPy cannot read
        return np.asarray(value.float()).astype(ml_dtypes.bfloat16)
    return np.asarray(value)
