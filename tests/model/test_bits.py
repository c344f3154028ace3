"""Numbers taken by their bits, against NumPy, for every number of 16 bits."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from refimpl.model.floating_point import is_zero
from refimpl.model.model import zeroed

EVERY = np.arange(1 << 16, dtype=np.uint16)
HALVES = EVERY.view(np.float16)


def same_bits(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_zeros_and_what_stays_are_those_of_arithmetic(dtype: npt.DTypeLike) -> None:
    values = EVERY.view(ml_dtypes.bfloat16 if dtype != np.float16 else np.float16)
    keep = np.random.default_rng(0).random((256, 256)) < 0.5
    with np.errstate(invalid="ignore"):  # of NaN
        values = values.astype(dtype).reshape(256, 256)
        np.testing.assert_array_equal(is_zero(values), values == 0)
    for value, kept in ((values, keep), (values.T, keep)):
        assert same_bits(zeroed(value, kept), np.where(kept, value, np.zeros((), dtype)))
