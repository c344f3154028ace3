"""The BLAS of this process: what it is called, and whether its products are right.

Some builds are wrong: float32 ``A @ A.T`` of one NumPy wheel, products of one OpenBLAS
on one processor, threads that race. Their numbers would look like a model's.
"""

from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from threadpoolctl import ThreadpoolController

from refimpl.errors import RefimplError
from refimpl.model.ops import Array

PRODUCTS = (  # rows, inner, columns: of one token, of odd edges, of whole tiles and beyond
    (1, 96, 64),
    (7, 33, 65),
    (64, 64, 64),
    (66, 257, 129),
)
MANY_BITS = 4095  # with more bits than bfloat16 (8) and TF32 (11) have
FEW_BITS = (
    7  # 257 products of both stay below 2^23, so float32 adds them without rounding
)
Product = Callable[[Array, Array], Array]


def blas_kernel() -> str:
    """The kernel of BLAS of this process, such as "Haswell", as OpenBLAS names it."""
    names = (x.get("architecture") for x in ThreadpoolController().info())
    return next(filter(None, names), "unknown")


def blas_name() -> str:
    """Library, version and kernel of BLAS, such as "openblas 0.3.31 Haswell"."""
    libraries = ThreadpoolController().select(user_api="blas").info()
    if not libraries:
        return "unknown"
    facts = libraries[0]
    words = (facts.get(name) for name in ("internal_api", "version", "architecture"))
    return " ".join(word for word in words if word)


def product_of_layouts(a: Array, b: Array) -> Iterator[tuple[str, Array, Array]]:
    """Two factors in the layouts of memory for which BLAS has code of its own."""
    wide = np.zeros((a.shape[0], 2 * a.shape[1]), a.dtype)
    wide[:, ::2] = a
    yield "rows by rows", a, b
    yield "rows by columns", a, np.asfortranarray(b)
    yield "columns by rows", np.asfortranarray(a), b
    yield "columns by columns", np.asfortranarray(a), np.asfortranarray(b)
    yield "every second column by rows", wide[:, ::2], b


def wrong_product(product: Product = np.matmul) -> str | None:
    """The first product that is wrong, in words, or None.

    The factors are integers whose products and sums float32 holds exactly, in any order
    of addition, so a right product equals that of the integers to the last bit.
    """
    draw = np.random.default_rng(0)
    for rows, inner, columns in PRODUCTS:
        left = draw.integers(-MANY_BITS, MANY_BITS, (rows, inner))
        right = draw.integers(-FEW_BITS, FEW_BITS, (inner, columns))
        small = draw.integers(-FEW_BITS, FEW_BITS, (rows, inner))
        wanted = left @ right
        squared = small @ small.T
        for dtype in (np.float32, np.float64):
            size = f"{np.dtype(dtype).name} [{rows}, {inner}] x [{inner}, {columns}]"
            pairs = product_of_layouts(left.astype(dtype), right.astype(dtype))
            for layout, a, b in pairs:
                if not np.array_equal(product(a, b), wanted):
                    return f"{size}, {layout}"
                # The same numbers with the large factor on the right.
                if not np.array_equal(product(b.T, a.T), wanted.T):
                    return f"{size}, {layout}, transposed"
            a = small.astype(dtype)
            if not np.array_equal(product(a, a.T), squared):
                return f"{np.dtype(dtype).name} A A^T of [{rows}, {inner}]"
            stack = np.stack([a, 2 * a])
            if not np.array_equal(product(stack, stack.swapaxes(1, 2))[1], 4 * squared):
                return f"{np.dtype(dtype).name} stacks of [{rows}, {inner}]"
            one = right.astype(dtype)[:, 0]
            if not np.array_equal(product(left.astype(dtype), one), wanted[:, 0]):
                return f"{size}, by one vector"
    return None


@cache
def require_right_products() -> None:
    """Refuse a BLAS that multiplies wrongly; it is tried once in a process."""
    if (words := wrong_product()) is not None:
        raise RefimplError(
            f"the matrix products of {blas_name()} are wrong: {words}",
            "a BLAS whose products of integers are exact",
            "install another build of numpy, or set OPENBLAS_CORETYPE=Haswell",
        )
