"""The correction of a base allocation, by absorption or divergence."""

from math import lcm, log
from typing import Annotated

import numpy as np
import numpy.typing as npt
from msgspec import Meta

from refimpl.arguments import Fraction, checked, finite_vector
from refimpl.errors import RefimplError
from refimpl.model.ops import Array

LOG_LIMIT = log(3.0)
RESOLVED = 1e-12  # of the largest error: less is rounding, above all of a KL
STRENGTH, MAX_CORRECTION = 0.05, 0.10  # provisional: not yet chosen on held-out data


@checked
def clipped_log(ratio: npt.ArrayLike) -> Array:
    """Return the clipped logarithm of absorption coefficients.

    u_l = clip(log r_l, -log 3, log 3);  u_l = 0 where r_l is unknown

    Args:
        ratio: r, absorption coefficient per block, [L], at least 0; NaN where unknown.

    Returns:
        u, [L], in [-log 3, log 3].

    Raises:
        RefimplError: A coefficient is negative or infinite.

    Source: arXiv:2606.15161, claim 3.

    Example:
        >>> clipped_log([9.0, 1.0, float("nan")]).round(4)
        array([1.0986, 0.    , 0.    ])
    """
    r, known = _checked(ratio, "absorption coefficient")
    # 0 is complete absorption: its logarithm is below any limit, as is that of any tiny number.
    u = np.clip(np.log(np.maximum(r, np.finfo(np.float64).tiny)), -LOG_LIMIT, LOG_LIMIT)
    return np.where(known, u, 0.0)


@checked
def centred_log(error: npt.ArrayLike) -> Array:
    """Return the clipped logarithm of errors, relative to their geometric mean.

    v_l = log a_l - mean log a;  u_l = clip(v_l, -log 3, log 3);
    u_l = 0, and not in the mean, if a_l is unknown, or at most 1e-12 max a, which is rounding

    Args:
        error: a, per block the error that arrives at the end, [L], at least 0; NaN where unknown.

    Returns:
        u, [L], in [-log 3, log 3].

    Raises:
        RefimplError: An error is negative or infinite.

    Example:
        >>> centred_log([0.1, 0.2, 0.0]).round(4)
        array([-0.3466,  0.3466,  0.    ])
    """
    a, known = _checked(error, "error")
    known &= a > RESOLVED * np.max(a, where=known, initial=0.0)
    log_a = np.log(np.where(known, a, 1.0))
    v = log_a - log_a.sum() / max(
        int(known.sum()), 1
    )  # the others contribute log 1 = 0
    return np.where(known, np.clip(v, -LOG_LIMIT, LOG_LIMIT), 0.0)


@checked
def correction(
    u: npt.ArrayLike,
    strength: Annotated[float, Meta(ge=-100, le=100)] = STRENGTH,
    max_correction: Fraction = MAX_CORRECTION,
) -> tuple[Array, Array]:
    """Return the correction of every block: amplified errors lower its sparsity.

    Delta_l = -(u_l - mean u);
    c_l = clip(strength * Delta_l, -max_correction, max_correction);
    s_u = Project(base_u + c_l), l the block of unit u

    Args:
        u: Clipped logarithms per block, [L].
        strength: Fraction pruned per unit of Delta, in [-100, 100]; may be negative.
        max_correction: Greatest change of a block's fraction pruned, in [0, 1].

    Returns:
        `(Delta, c)`, both [L].

    Raises:
        RefimplError: A number is NaN, infinite or out of range.

    Source: arXiv:2606.15161, claim 3, for Delta and a limited size; the form and values are ours.

    Example:
        >>> delta, c = correction([0.5, -0.5, 0.0], strength=0.05)
        >>> delta
        array([-0.5,  0.5,  0. ])
        >>> c
        array([-0.025,  0.025,  0.   ])
    """
    logs = finite_vector(u, "u")
    # Exact: equal logarithms change nothing, also where their mean would be rounded.
    ratios = [v.as_integer_ratio() for v in logs.tolist()]
    common = lcm(*(d for _, d in ratios))
    exact = [n * (common // d) for n, d in ratios]  # in units of 1 / common
    total, count = sum(exact), len(exact)
    delta = np.array([(total - v * count) / (common * count) for v in exact])
    return delta, np.clip(strength * delta, -max_correction, max_correction)


def _checked(values: npt.ArrayLike, name: str) -> tuple[Array, Array]:
    """Values [L], 1 where they are unknown, and where they are known, [L]."""
    numbers = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(numbers)
    filled = finite_vector(np.where(known, numbers, 1.0), name)
    if filled.min() < 0:
        raise RefimplError(
            f"{name} {filled.min()}", "numbers of at least 0", "check the drifts"
        )
    return filled, known
