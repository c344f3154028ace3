"""The operations a transformer is made of, each a few lines of NumPy.

Every function keeps the dtype of its input, mutates no argument, and uses only operations that a
recording array (`refimpl.onnx`) can intercept. Activations, `erf` and `soft_cap` take any shape and
return the same shape.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError

Array = npt.NDArray[Any]


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Apply ``y = x W^T + b``.

    Args:
        x: Input, [..., in].
        weight: Matrix, [out, in].
        bias: Offset, [out], or None.

    Returns:
        Output, [..., out].

    Example:
        >>> linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5])).tolist()
        [[11.5]]
    """
    y = x @ weight.T
    return y if bias is None else y + bias


def rms_norm(x: Array, weight: Array | float, eps: float) -> Array:
    """Scale each token to unit root mean square: ``w * x / sqrt(mean(x^2) + eps)``.

    Args:
        x: Input, [..., D].
        weight: Gain, [D], or one number.
        eps: Added to the mean square.

    Returns:
        Normalised input, [..., D].

    Example:
        >>> rms_norm(np.array([3.0, 4.0]), np.ones(2), 0.0).round(4).tolist()
        [0.8485, 1.1314]
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + eps) * weight


def layer_norm(
    x: Array, weight: Array | float, bias: Array | float, eps: float
) -> Array:
    """Centre and scale each token: ``w * (x - mean) / sqrt(var + eps) + b``.

    Args:
        x: Input, [..., D].
        weight: Gain, [D], or one number.
        bias: Offset, [D], or one number.
        eps: Added to the (population) variance.

    Returns:
        Normalised input, [..., D].

    Example:
        >>> layer_norm(np.array([1.0, 3.0]), np.ones(2), np.zeros(2), 0.0).tolist()
        [-1.0, 1.0]
    """
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weight + bias


def softmax(x: Array, sink: Array | None = None) -> Array:
    """Normalise over the last axis: ``exp(x - max x) / sum exp(x - max x)``.

    A sink is one more score of each row: it takes its share, which is not returned.

    Args:
        x: Scores, [..., S]; ``-inf`` gives weight 0; each row needs a finite entry.
        sink: Another score of each row, [..., 1], or None.

    Returns:
        Weights over the last axis, [..., S]; without a sink, they sum to 1.

    Source: for sinks, Xiao et al., arXiv:2309.17453, section 3, with a learned score.

    Example:
        >>> softmax(np.array([0.0, 0.0, -np.inf])).tolist()
        [0.5, 0.5, 0.0]
        >>> softmax(np.array([0.0, 0.0, -np.inf]), np.array([0.0])).round(3).tolist()
        [0.333, 0.333, 0.0]
    """
    top = np.max(x, axis=-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink)
    e = np.exp(x - top)
    total = np.sum(e, axis=-1, keepdims=True)
    e /= total if sink is None else total + np.exp(sink - top)
    return e


def sigmoid(x: Array) -> Array:
    """Compute ``1 / (1 + exp(-x))``, without overflow for any finite input.

    Inputs are limited to where ``exp(-x)`` is finite; below, the result is 0 to within 1e-37.

    Example:
        >>> sigmoid(np.array([-1e4, 0.0])).round(4).tolist()
        [0.0, 0.5]
    """
    return 1 / (1 + np.exp(-np.maximum(x, 1 - math.log(np.finfo(x.dtype).max))))


def silu(x: Array) -> Array:
    """Compute ``x / (1 + exp(-x))``, without overflow for any finite input.

    Inputs are limited to where ``exp(-x)`` is finite; below, the result is 0 to within 1e-35.

    Example:
        >>> silu(np.array([-1.0, 0.0, 1e4])).round(4).tolist()
        [-0.2689, 0.0, 10000.0]
    """
    a = np.maximum(x, 1 - math.log(np.finfo(x.dtype).max))
    return a / (1 + np.exp(-a))


def sigmoid_gelu(x: Array) -> Array:
    """Compute ``x / (1 + exp(-1.702 x))``, GELU's sigmoid form, without overflow as in `silu`.

    Source: Hendrycks and Gimpel, arXiv:1606.08415, section 2.

    Example:
        >>> sigmoid_gelu(np.array([0.0, 1.0])).round(4).tolist()
        [0.0, 0.8458]
    """
    a = np.maximum(x, (1 - math.log(np.finfo(x.dtype).max)) / 1.702)
    return a / (
        1 + np.exp(-1.702 * np.minimum(a, 100))
    )  # above 100, the exponential is 0 beside 1


def gelu_tanh(x: Array) -> Array:
    """Compute ``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``, GELU's tanh form.

    Source: Hendrycks and Gimpel, arXiv:1606.08415, section 2.

    Example:
        >>> gelu_tanh(np.array([0.0, 1.0])).round(4).tolist()
        [0.0, 0.8412]
    """
    return _gelu_tanh(x, 0.7978845608028654)


def gelu_tanh_8(x: Array) -> Array:
    """GELU's tanh form with 8 digits of sqrt(2/pi), as Bloom has it.

    Example:
        >>> gelu_tanh_8(np.array([0.0, 1.0])).round(4).tolist()
        [0.0, 0.8412]
    """
    return _gelu_tanh(x, 0.79788456)


def _gelu_tanh(x: Array, root: float) -> Array:
    a = np.minimum(
        np.maximum(x, -10), 10
    )  # tanh is 1 from there on; the cube would overflow
    return 0.5 * x * (1 + np.tanh(root * (a + 0.044715 * (a * a * a))))


# exp(x^2) erfc(x) as a polynomial in t = (x - 2) / (x + 2), for 0 <= x <= 6; lowest power first.
# Interpolated at 20 Chebyshev nodes with 40 digits; largest error of erf: 3e-16.
_ERFCX = (
    0.25539567631050575,
    -0.4271858474139584,
    0.24165819424246857,
    -0.07897858101572681,
    0.003732892404169214,
    0.006997461738522181,
    -0.0008471432474075247,
    -0.0009819770045915277,
    4.3555593714334314e-05,
    0.000174360854035441,
    2.7524818341682527e-05,
    -2.7577662783630134e-05,
    -1.3958140108691665e-05,
    1.3844883978557756e-06,
    3.7273327879521996e-06,
    1.1958788541954323e-06,
    -3.569380703471743e-07,
    -4.469879094362201e-07,
    -1.6243883451869724e-07,
    -2.293727350852713e-08,
)


def erf(x: Array) -> Array:
    """Compute the error function ``2/sqrt(pi) * integral_0^x exp(-u^2) du``.

    ``erf(x) = sign(x) (1 - exp(-x^2) P(t))`` with ``t = (|x| - 2) / (|x| + 2)``. NumPy has no
    erf, and ONNX Runtime has none in float64.

    Returns:
        Same shape as x; absolute error at most 5e-16 in float64.

    Example:
        >>> erf(np.array([-9.0, 0.5])).round(12).tolist()
        [-1.0, 0.520499877813]
    """
    a = np.minimum(np.abs(x), 6)  # erf(6) is 1 to within 2e-17
    t = (a - 2) / (a + 2)
    p = t * _ERFCX[-1] + _ERFCX[-2]
    for coefficient in _ERFCX[-3::-1]:
        p = p * t + coefficient
    y = 1 - np.exp(-(a * a)) * p
    return np.where(x > 0, y, -y)


def gelu(x: Array) -> Array:
    """Compute ``x/2 (1 + erf(x / sqrt(2)))``, the exact GELU.

    Source: Hendrycks and Gimpel, arXiv:1606.08415, section 2.

    Example:
        >>> gelu(np.array([0.0, 1.0])).round(4).tolist()
        [0.0, 0.8413]
    """
    return 0.5 * x * (1 + erf(x * 0.7071067811865476))


def relu(x: Array) -> Array:
    """Compute ``max(x, 0)``.

    Example:
        >>> relu(np.array([-1.0, 2.0])).tolist()
        [0.0, 2.0]
    """
    return np.maximum(x, 0)


def relu2(x: Array) -> Array:
    """Compute ``max(x, 0)^2``.

    Source: So et al., arXiv:2109.08668, section 3.

    Example:
        >>> relu2(np.array([-1.0, 2.0])).tolist()
        [0.0, 4.0]
    """
    y = np.maximum(x, 0)
    return y * y


def softplus(x: Array) -> Array:
    """Compute ``log(1 + exp(x))``, without overflow for any finite input.

    Example:
        >>> softplus(np.array([0.0, 1e4])).round(4).tolist()
        [0.6931, 10000.0]
    """
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def xielu(x: Array, alpha_p: Array, alpha_n: Array, beta: Array, eps: Array) -> Array:
    """Compute xIELU: quadratic above 0, an exponential minus a line below.

    ``a_p x^2 + beta x`` for x > 0, and ``a_n (exp(min(x, eps)) - 1 - x) + beta x`` elsewhere, with
    ``a_p = softplus(alpha_p)`` and ``a_n = beta + softplus(alpha_n)``.

    Args:
        x: Input, of any shape.
        alpha_p: Learned, [1].
        alpha_n: Learned, [1].
        beta: Slope at 0, a constant that the file stores, [].
        eps: Largest argument of the exponential, a small negative constant, [].

    Returns:
        Output, the shape of x.

    Source: Huang and Schlag, arXiv:2411.13010, section 3; eps is transformers'.

    Example:
        >>> one = np.ones(1)
        >>> xielu(np.array([-1.0, 0.0, 1.0]), one, one, np.array(0.5), np.array(-1e-6)).round(4)
        array([ 0.1671, -0.    ,  1.8133])
    """
    above, below = np.maximum(x, 0), np.expm1(np.minimum(x, eps)) - x
    a_p, a_n = softplus(alpha_p), beta + softplus(alpha_n)
    return np.where(x > 0, a_p * above * above, a_n * below) + beta * x


ACTIVATIONS: Mapping[str, Callable[..., Array]] = {
    function.__name__: function
    for function in (
        silu,
        gelu,
        gelu_tanh,
        sigmoid_gelu,
        gelu_tanh_8,
        relu,
        relu2,
        xielu,
    )
}


def scaled(x: Array, factor: float) -> Array:
    """Compute ``factor x``; a factor of 1 costs nothing.

    Example:
        >>> scaled(np.array([2.0]), 0.5).tolist()
        [1.0]
    """
    return x if factor == 1 else x * factor


def limited(x: Array, limit: float | None) -> Array:
    """Limit values to [-limit, limit]; None does not change them.

    Example:
        >>> limited(np.array([-5.0, 1.0]), 2.0).tolist()
        [-2.0, 1.0]
    """
    return x if limit is None else np.minimum(np.maximum(x, -limit), limit)


def clamped_gate(gate: Array, up: Array, limit: float | None) -> tuple[Array, Array]:
    """Limit both halves of a gated MLP: ``min(gate, limit)`` and ``clip(up, +-limit) + 1``.

    Without a limit, neither changes.

    Source: gpt-oss, as transformers computes it.

    Example:
        >>> gate, up = clamped_gate(np.array([-9.0, 9.0]), np.array([-9.0, 9.0]), 7.0)
        >>> gate.tolist(), up.tolist()
        ([-9.0, 7.0], [-6.0, 8.0])
    """
    if limit is None:
        return gate, up
    return np.minimum(gate, limit), limited(up, limit) + 1


def soft_cap(x: Array, cap: float | None) -> Array:
    """Limit values to (-cap, cap): ``cap * tanh(x / cap)``; None does not change them.

    Source: Gemma 2, arXiv:2408.00118, section 2.

    Example:
        >>> soft_cap(np.array([1000.0]), 30.0).tolist()
        [30.0]
    """
    return x if cap is None else cap * np.tanh(x / cap)


@contextmanager
def within_range(dtype: npt.DTypeLike) -> Iterator[None]:
    """Turn overflow, division by zero and invalid operations into an error that names the dtype.

    Example:
        >>> with within_range(np.float32):
        ...     np.float32(1e38) * np.float32(10)
        Traceback (most recent call last):
        ...
        refimpl.errors.RefimplError: a number is beyond the range of float32 (overflow ...
        expected: weights and states within the range of float32
        next: use `dtype=float64`; with score, try a smaller `eta`; otherwise check the weights
    """
    name = np.dtype(dtype).name
    try:
        with np.errstate(over="raise", divide="raise", invalid="raise"):
            yield
    except FloatingPointError as error:
        raise RefimplError(
            f"a number is beyond the range of {name} ({error})",
            f"weights and states within the range of {name}",
            "use `dtype=float64`; with score, try a smaller `eta`; otherwise check the weights",
        ) from error


def bits_of(values: Array) -> Array:
    """The bits of floating-point values as whole numbers: a view, and a plain array."""
    return np.asarray(values).view(f"u{values.dtype.itemsize}")


def is_zero(values: Array) -> Array:
    """Whether values are zero, of either sign, read from their bits.

    Example:
        >>> is_zero(np.array([0.0, -0.0, 1e-45], np.float32)).tolist()
        [True, True, False]
    """
    return (bits_of(values) << 1) == 0  # without the sign
