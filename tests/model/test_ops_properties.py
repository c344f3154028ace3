"""Laws that the operations and whole blocks obey, on generated inputs."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from gates import bits
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special
from strategies import seeds

from refimpl.model import kernels, ops, position_tables
from refimpl.model.config import LEARNED_ACTIVATION, NORMS, BlockKind, Config
from refimpl.model.forward import block, embed, head, places
from refimpl.model.kernels import PLAIN, TILED, Kernels
from refimpl.model.mixers.softmax_attention import Attention
from refimpl.model.model import zeroed
from refimpl.model.ops import Array, is_zero
from refimpl.model.position_tables import Rope
from refimpl.model.state import State

DTYPES = ["float32", "float64"]
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]

EITHER = st.sampled_from([PLAIN, TILED])
# Values of float32, so that float64 squares and scales them exactly or nearly so.
VALUES = st.floats(-100, 100, width=32)


def tokens(elements: st.SearchStrategy[float] = VALUES) -> st.SearchStrategy[Array]:
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=5)
    return hnp.arrays(np.float64, shapes, elements=elements, fill=st.nothing())


def every_finite(dtype: str) -> st.SearchStrategy[Array]:
    """Arrays of any finite floats, the largest and the smallest included."""
    return hnp.arrays(
        dtype,
        hnp.array_shapes(max_dims=2),
        elements=hnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False),
    )


@given(tokens(), st.integers(-40, 40), st.floats(0.01, 100))
def test_rms_norm_ignores_scale_and_gives_unit_mean_square(
    x: Array, power: int, scale: float
) -> None:
    assume(np.all(np.max(np.abs(x), axis=-1) > 1e-3))
    gain = np.linspace(-1, 2, x.shape[-1])
    y = ops.rms_norm(x, gain, 0.0)
    np.testing.assert_array_equal(ops.rms_norm(x * 2.0**power, gain, 0.0), y)
    np.testing.assert_allclose(ops.rms_norm(x * scale, gain, 0.0), y, rtol=1e-14)
    np.testing.assert_allclose(ops.rms_norm(x * -scale, gain, 0.0), -y, rtol=1e-14)
    squares = np.mean(ops.rms_norm(x, np.ones(x.shape[-1]), 0.0) ** 2, axis=-1)
    np.testing.assert_allclose(squares, 1, rtol=1e-14)


@given(tokens(), st.floats(0.01, 100), st.sampled_from([-1.0, 1.0]), VALUES)
def test_layer_norm_centres_and_ignores_shift_and_scale(
    x: Array, scale: float, sign: float, shift: float
) -> None:
    ramp = np.linspace(
        -4, 4, x.shape[-1]
    )  # whose spread is more than that of x can undo
    x = x + ramp * (np.max(np.abs(x)) + 1)
    gain, bias = np.linspace(-1, 2, x.shape[-1]), np.linspace(3, 1, x.shape[-1])
    moved = ops.layer_norm(x * scale * sign + shift * scale, gain, bias, 0.0)
    y = ops.layer_norm(x, gain * sign, bias, 0.0)
    np.testing.assert_allclose(moved, y, rtol=1e-12, atol=1e-12)
    y = ops.layer_norm(x, np.ones_like(gain), np.zeros_like(bias), 0.0)
    np.testing.assert_allclose(np.mean(y, axis=-1), 0, atol=1e-13)
    np.testing.assert_allclose(np.std(y, axis=-1), 1, rtol=1e-13)


@given(st.sampled_from(DTYPES), seeds)
def test_norms_of_nothing_are_nothing(dtype: str, seed: int) -> None:
    gain = np.random.default_rng(seed).standard_normal(5).astype(dtype)
    x = np.zeros((2, 5), dtype)
    np.testing.assert_array_equal(ops.rms_norm(x, gain, 1e-6), x)
    np.testing.assert_array_equal(ops.layer_norm(x, gain, gain, 1e-6), x + gain)


@given(tokens(), VALUES, st.data())
def test_softmax(x: Array, shift: float, data: st.DataObject) -> None:
    hidden = data.draw(hnp.arrays(bool, x.shape))
    hidden[:, 0] = False
    scores = np.where(hidden, -np.inf, x)
    weights = ops.softmax(scores)
    np.testing.assert_allclose(weights, special.softmax(scores, axis=-1), rtol=1e-13)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-14)
    np.testing.assert_array_equal(weights[hidden], 0)
    np.testing.assert_allclose(ops.softmax(scores + shift), weights, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_softmax_of_extreme_scores(dtype: str, data: st.DataObject) -> None:
    x = data.draw(every_finite(dtype)) / np.array(2, dtype)  # differences stay finite
    weights = ops.softmax(x)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-6)
    assert np.all((weights >= 0) & (weights <= 1))


EXACT: dict[str, Callable[[float], float]] = {
    "silu": lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0,
    "gelu": lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "gelu_tanh_8": lambda x: (
        x / 2 * (1 + math.tanh(0.79788456 * (x + 0.044715 * x**3)))
    ),
    "sigmoid_gelu": lambda x: x / (1 + math.exp(-1.702 * x)) if x > -400 else 0.0,
    "relu": lambda x: max(x, 0.0),
    "relu2": lambda x: max(x, 0.0) * max(x, 0.0),
}
LINEAR = {
    n: f for n, f in ops.ACTIVATIONS.items() if n not in ("relu2", "xielu")
}  # at infinity
ELEMENTWISE: dict[str, Callable[[Array], Array]] = {
    **LINEAR,
    "erf": ops.erf,
    "sigmoid": ops.sigmoid,
    "soft_cap": lambda x: ops.soft_cap(x, 30.0),
}


@given(hnp.arrays(np.float64, 20, elements=st.floats(-1e3, 1e3)))
def test_activations_follow_their_formulas(x: Array) -> None:
    assert {*EXACT, "xielu"} == ops.ACTIVATIONS.keys()
    for name, formula in EXACT.items():
        error = np.abs(
            ops.ACTIVATIONS[name](x) - np.array([formula(v) for v in x.tolist()])
        )
        assert np.all(error <= 1e-15 * np.maximum(np.abs(x), 1e-3)), name


@given(
    hnp.arrays(np.float64, 20, elements=st.floats(-1e3, 1e3)),
    *[st.floats(-50, 50)] * 2,
    st.floats(0.1, 2),
)
@example(
    np.full(20, 981.0), -20.25, 0.0, 0.1015625
)  # a softplus that is small beside 1
def test_xielu_follows_its_formula(x: Array, p: float, n: float, beta: float) -> None:
    def softplus(a: float) -> float:
        return max(a, 0) + math.log1p(math.exp(-abs(a)))

    def exact(v: float) -> float:
        if v > 0:
            return softplus(p) * v * v + beta * v
        return (beta + softplus(n)) * (math.expm1(min(v, -1e-6)) - v) + beta * v

    y = ops.xielu(x, *(np.array([value]) for value in (p, n, beta, -1e-6)))
    np.testing.assert_allclose(
        y, [exact(v) for v in x.tolist()], rtol=1e-12, atol=1e-12
    )


def test_erf_on_a_fine_grid() -> None:
    x = np.linspace(-7, 7, 200_001)
    assert np.max(np.abs(ops.erf(x) - special.erf(x))) <= 5e-16
    low = x.astype(np.float32)
    assert np.max(np.abs(ops.erf(low) - special.erf(low.astype(np.float64)))) <= 3e-7


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_elementwise_operations_stay_finite(dtype: str, data: st.DataObject) -> None:
    limits = np.finfo(dtype)
    extremes = np.array(
        [limits.max, -limits.max, limits.tiny, -limits.tiny, -0.0], dtype
    )
    for x in (extremes, data.draw(every_finite(dtype))):
        for name, function in ELEMENTWISE.items():
            y = function(x)
            assert (y.dtype, y.shape) == (x.dtype, x.shape), name
            assert np.isfinite(y).all(), name
            if name in LINEAR:  # all of them are relu, but near zero
                error = np.abs(y - np.maximum(x, 0))
                assert np.all(error <= np.where(np.abs(x) > 90, 1e-30, 0.3)), name
            else:
                assert np.all(np.abs(y) <= np.maximum(np.abs(x), 1)), name


def queries(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.sampled_from(INTEGERS), st.data())
def test_rope_tables_for_any_integer_dtype(
    dtype: str, integer: str, data: st.DataObject
) -> None:
    largest = min(np.iinfo(integer).max, 10**6)
    positions = data.draw(hnp.arrays(integer, 4, elements=st.integers(0, largest)))
    inv_freq = np.array([1.0, 0.3, 1e-4])
    cos, sin = position_tables.rope_tables(positions, inv_freq, dtype)
    angles = [[int(p) * f for f in inv_freq.tolist()] for p in positions]
    for table, function in ((cos, math.cos), (sin, math.sin)):
        exact = np.array([[function(angle) for angle in row] for row in angles])
        assert table.dtype == dtype
        np.testing.assert_allclose(
            table, exact.astype(dtype), atol=float(np.finfo(dtype).eps)
        )


@given(st.sampled_from(INTEGERS), st.data())
def test_causal_bias(integer: str, data: st.DataObject) -> None:
    positions = data.draw(
        hnp.arrays(integer, st.integers(1, 6), elements=st.integers(0, 127))
    )
    window = data.draw(st.none() | st.integers(1, 300))
    bias = position_tables.causal_bias(positions, window, np.float32)
    later = positions.astype(int)[:, None] - positions.astype(int)
    seen = (later >= 0) & (later < (300 if window is None else window))
    np.testing.assert_array_equal(
        bias, np.where(seen, 0, -np.inf).astype("f4"), strict=True
    )


@st.composite
def configs(draw: st.DrawFn) -> Config:
    kv_heads, head_dim = draw(st.integers(1, 2)), draw(st.sampled_from([4, 6]))
    heads = kv_heads * draw(st.integers(1, 2))
    rotary = st.builds(
        Rope,
        st.floats(10, 1e5),
        st.sampled_from(range(2, head_dim + 1, 2)),
        st.just("default"),
    )
    cap = st.none() | st.floats(1, 50)
    return Config(
        family="random",
        vocab_size=11,
        hidden_size=draw(st.integers(5, 9)),
        intermediate_size=draw(st.integers(3, 8)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=16,
        norm=draw(st.sampled_from(["rms", "layer"])),
        norm_eps=1e-5,
        activation=draw(st.sampled_from(sorted(ops.ACTIVATIONS))),
        gated=draw(st.booleans()),
        attention_scale=draw(st.floats(0.1, 1)),
        blocks=(
            BlockKind(
                draw(st.none() | st.integers(1, 4)),
                draw(st.none() | rotary),
                mixer=Attention(heads, kv_heads, head_dim),
            ),
        ),
        parallel_residual=draw(st.booleans()),
        attn_soft_cap=draw(cap),
        final_soft_cap=draw(cap),
        embed_scale=draw(st.floats(0.5, 6)),
        residual_scale=draw(st.floats(0.1, 2)),
        logit_scale=draw(st.floats(0.1, 2)),
        qkv_limit=draw(st.none() | st.floats(0.5, 2)),
        weightless_norms=tuple(draw(st.sets(st.sampled_from(NORMS)))),
        position_offset=draw(st.integers(0, 2)),
    )


def weights_of(config: Config, seed: int, dtype: npt.DTypeLike) -> dict[str, Array]:
    """Random weights for a block, the embedding and the head; nobody may write to them."""
    rng = np.random.default_rng(seed)
    roles = (role for role in NORMS if rng.random() < 0.5)
    sizes = config.norm_sizes(0) | {"final_norm": config.hidden_size}
    shapes: dict[str, tuple[int, ...]] = {
        f"{role}.weight": (sizes[role],) for role in ("final_norm", *roles)
    }
    shapes |= {f"{name}.weight": shape for name, shape in config.linears[0].items()}
    shapes |= {
        name.replace("weight", "bias"): shape[:1]
        for name, shape in shapes.items()
        if ("norm" in name and config.norm == "layer") or rng.random() < 0.5
    }
    vocabulary = (config.vocab_size, config.hidden_size)
    shapes |= {"embed.weight": vocabulary, "lm_head.weight": vocabulary}
    if config.blocks[0].rope is None:
        rows = config.max_position_embeddings + config.position_offset
        shapes["pos_embed.weight"] = (rows, config.hidden_size)
    if config.activation == "xielu":
        shapes |= LEARNED_ACTIVATION
    weights = {
        name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()
    }
    for weight in weights.values():
        weight.setflags(write=False)
    return weights


def run_block(
    x: Array,
    config: Config,
    seed: int,
    first: int = 0,
    how: Kernels = PLAIN,
    without: str = "none",
) -> Array:
    """A block on positions from the first, without the weights whose names contain a word."""
    positions = first + np.arange(x.shape[1])
    place = places(positions, config, x.dtype, how)[config.blocks[0]]
    x.setflags(write=False)
    weights = weights_of(config, seed, x.dtype)
    some = {n: w for n, w in weights.items() if without not in n}
    return block(State(x, np.zeros(x.shape[:2], int)), some, place, config).stream


def streams(config: Config, seed: int, dtype: str) -> Array:
    return queries(seed, 3, 7, config.hidden_size).astype(dtype)


@given(configs(), seeds, st.sampled_from(DTYPES), EITHER, st.integers(0, 6))
def test_a_token_changes_nothing_before_it_or_past_its_window(
    config: Config, seed: int, dtype: str, how: Kernels, changed: int
) -> None:
    x = streams(config, seed, dtype)
    other = x.copy()
    other[:, changed] += 1 + np.arange(config.hidden_size, dtype=dtype)
    y, y_other = (run_block(stream, config, seed, how=how) for stream in (x, other))
    assert np.all(np.any(y[:, changed] != y_other[:, changed], axis=-1))
    np.testing.assert_array_equal(y[:, :changed], y_other[:, :changed])
    if (window := config.blocks[0].window) is not None:
        np.testing.assert_array_equal(
            y[:, changed + window :], y_other[:, changed + window :]
        )


@given(configs(), seeds, st.sampled_from(DTYPES), EITHER)
def test_sequences_are_independent(
    config: Config, seed: int, dtype: str, how: Kernels
) -> None:
    """What the others hold changes no bit: where it lies in memory may, with some kernels."""
    x, others = (streams(config, seed + n, dtype) for n in range(2))
    y = run_block(x, config, seed, how=how)
    for row in range(len(x)):
        mixed = others.copy()
        mixed[row] = x[row]
        np.testing.assert_array_equal(
            run_block(mixed, config, seed, how=how)[row], y[row]
        )


@given(configs(), seeds, st.integers(0, 1000))
def test_a_block_sees_relative_positions_only(
    config: Config, seed: int, first: int
) -> None:
    # Not with a norm after the rotation: its gain, and its mean, depend on the channel.
    config = replace(config, weightless_norms=())
    x, without = streams(config, seed, "float64"), "_rope_norm"
    y, y_moved = (
        run_block(x, config, seed, start, without=without) for start in (0, first)
    )
    np.testing.assert_allclose(y_moved, y, rtol=1e-7, atol=1e-7)


@given(configs(), seeds, st.integers(1, 8), st.integers(1, 60))
def test_tiles_change_rounding_only(
    config: Config, seed: int, queries_at_once: int, elements_at_once: int
) -> None:
    x = streams(config, seed, "float64")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "QUERIES", queries_at_once)
        patch.setattr(kernels, "ELEMENTS", elements_at_once)
        tiled = run_block(x, config, seed, how=TILED)
    np.testing.assert_allclose(tiled, run_block(x, config, seed), rtol=1e-9, atol=1e-9)


@given(configs(), seeds, st.sampled_from(DTYPES))
def test_dtypes_stay_what_they_are(config: Config, seed: int, dtype: str) -> None:
    seen: dict[str, Any] = {}

    def point(name: str, value: Array) -> Array:
        seen[name] = value.dtype
        return value

    weights, positions = weights_of(config, seed, dtype), np.arange(4)
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=(2, 4))
    stored = {n: w.astype(np.float16) for n, w in weights.items() if "embed" in n}
    x = embed(ids, positions, stored, config, dtype)
    point("embed", x.stream)
    for place in places(positions, config, dtype).values():
        seen["bias"] = place.bias.dtype
        seen |= {f"table {i}": table.dtype for i, table in enumerate(place.rope or ())}
        x = block(x, weights, replace(place, observe=point), config)
    logits = head(x, weights, config, point)
    assert logits.shape == (2, 4, config.vocab_size)
    assert {np.dtype(dtype)} == set(seen.values())


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
)
def test_zeros_and_what_stays_are_those_of_arithmetic(dtype: npt.DTypeLike) -> None:
    """By their bits, for every number of 16 bits."""
    values = np.arange(1 << 16, dtype=np.uint16)
    values = values.view(ml_dtypes.bfloat16 if dtype != np.float16 else np.float16)
    keep = np.random.default_rng(0).random((256, 256)) < 0.5
    with np.errstate(invalid="ignore"):  # of NaN
        values = values.astype(dtype).reshape(256, 256)
        np.testing.assert_array_equal(is_zero(values), values == 0)
    for value, kept in ((values, keep), (values.T, keep)):
        assert bits(zeroed(value, kept)) == bits(
            np.where(kept, value, np.zeros((), dtype))
        )
