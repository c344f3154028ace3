"""A BLAS that multiplies wrongly is refused, whatever it does wrongly."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from refusals import refusal_of

from refimpl.model.ops import Array
from refimpl.running import blas


def rounded(dtype: Any) -> Callable[[Array, Array], Array]:
    return lambda a, b: (
        a.astype(dtype).astype(a.dtype) @ b.astype(dtype).astype(b.dtype)
    )


def tf32(a: Array, b: Array) -> Array:
    bits = a.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).astype(a.dtype) @ b


def with_its_last_row_stale(a: Array, b: Array) -> Array:
    result = a @ b
    if len(a) > 64:
        result[-1] = 0
    return result


def wrong_if_symmetric(a: Array, b: Array) -> Array:
    result = a @ b
    if a.dtype == np.float32 and a.base is b.base and a.shape == b.T.shape:
        result[0, -1] += 1
    return result


def blind_to_strides(a: Array, b: Array) -> Array:
    if a.ndim == 2 and not (a.flags.c_contiguous or a.flags.f_contiguous):
        a = np.ascontiguousarray(a.base[:, : a.shape[1]])
    return a @ b


def blind_to_the_order(a: Array, b: Array) -> Array:
    if b.ndim == 2 and b.flags.f_contiguous and not b.flags.c_contiguous:
        b = np.ascontiguousarray(b).reshape(b.shape[::-1]).T
    return a @ b


def wrong_vectors(a: Array, b: Array) -> Array:
    return a @ b + (b.ndim == 1)


def wrong_stacks(a: Array, b: Array) -> Array:
    return (a @ b)[::-1] if a.ndim == 3 else a @ b


WRONG = (
    rounded(ml_dtypes.bfloat16),
    rounded(np.float16),
    tf32,
    with_its_last_row_stale,
    wrong_if_symmetric,
    blind_to_strides,
    blind_to_the_order,
    wrong_vectors,
    wrong_stacks,
)


def test_this_blas_is_right() -> None:
    assert blas.wrong_product() is None


def in_reverse(a: Array, b: Array) -> Array:
    return a[..., ::-1] @ (b[::-1] if b.ndim == 1 else b[..., ::-1, :])


def by_einsum(a: Array, b: Array) -> Array:
    return np.einsum("...ik,k->...i" if b.ndim == 1 else "...ik,...kj->...ij", a, b)


@pytest.mark.parametrize("product", [in_reverse, by_einsum])
def test_another_order_of_addition_is_right(product: blas.Product) -> None:
    assert blas.wrong_product(product) is None


@pytest.mark.parametrize("product", WRONG)
def test_a_wrong_product_is_found(product: blas.Product) -> None:
    assert blas.wrong_product(product) is not None


def test_a_wrong_blas_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "wrong_product", lambda: "float32 A A^T of [7, 33]")
    blas.require_right_products.cache_clear()
    refusal_of(
        blas.require_right_products,
        says=f"the matrix products of {blas.blas_name()} are wrong: float32 A A^T",
        remedy="OPENBLAS_CORETYPE",
    )
    blas.require_right_products.cache_clear()
