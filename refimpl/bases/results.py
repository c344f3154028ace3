"""What a base returns, checked: its package may be another one."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.pruners.checks import Floats


def read_only(array: npt.ArrayLike) -> npt.NDArray[Any]:
    """A view of an array that its reader cannot change."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def checked_signal(base: str, numbers: Any, linears: int) -> dict[str, Any]:
    """What a signal returned for one block: by name a number, or one for each of its linears."""
    expected = f"a mapping from names to a number, or to {linears} numbers, one per linear"
    if not isinstance(numbers, Mapping) or not numbers:
        raise _refused(base, "signal", f"{numbers!r:.60}", expected)
    found = dict[str, Any]()
    for i, (name, value) in enumerate(numbers.items()):
        x = _numbers(value)
        if not isinstance(name, str) or x is None or x.shape not in ((), (linears,)):
            raise _refused(base, "signal", f"{name!r:.40}: {value!r:.60}", expected)
        if i == 0 and not np.isfinite(x).all():
            raise _refused(base, "signal", f"{name!r:.40}: {value!r:.60}", "finite numbers")
        found[name] = x.tolist()
    return found


def checked_allocation(base: str, sparsity: Any, sizes: npt.NDArray[np.int64]) -> Floats:
    """What an allocation returned: a finite number per block [L], or per linear [L, linears]."""
    x, shapes = _numbers(sparsity), (sizes.shape[:1], sizes.shape)
    if x is None or x.shape not in shapes or not np.isfinite(x).all() or np.abs(x).max() > 100:
        raise _refused(
            base,
            "allocation",
            f"{sparsity!r:.60}" if x is None else f"numbers of shape {list(x.shape)}: {x!r:.60}",
            f"finite fractions of shape {' or '.join(str([*shape]) for shape in shapes)}",
        )
    return x


def _numbers(value: Any) -> Floats | None:
    """Numbers in float64; None for anything else."""
    try:
        x = np.asarray(value)
    except ValueError:  # rows of several lengths
        return None
    return x.astype(np.float64) if x.dtype.kind in "iuf" else None


def _refused(base: str, what: str, value: str, expected: str) -> RefimplError:
    problem = f"base {base}: its {what} returned {value}"
    return RefimplError(problem, expected, f"correct the {what} of {base}")
