"""What a candidate hands over, as arrays."""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from refimpl.model.ops import Array


def arrays_of(actual: Mapping[str, Any]) -> dict[str, Array]:
    """Arrays, or torch tensors from any device, as arrays by name; torch is not imported."""
    return {name: _array(value) for name, value in actual.items()}


def _array(value: Any) -> Array:
    """One of them."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    value = value.detach().cpu()
    if str(value.dtype) == "torch.bfloat16":  # which NumPy cannot read
        return np.asarray(value.float()).astype(ml_dtypes.bfloat16)
    return np.asarray(value)
