"""Quantised checkpoints for the tests, made of fixtures, and the same weights unquantised.

The values are decoded here by definition, from their bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from checkpoints import arrays_of, config_of, write

from refimpl.model.ops import Array

BF16 = np.dtype(ml_dtypes.bfloat16)


def e4m3(byte: int) -> float:
    """The value of a byte: a sign, 4 bits of exponent with bias 7, 3 bits of fraction; no Inf."""
    sign, exponent, fraction = -1.0 if byte & 128 else 1.0, byte >> 3 & 15, byte & 7
    if (exponent, fraction) == (15, 7):
        return float("nan")
    return sign * (
        fraction / 8 * 2**-6
        if exponent == 0
        else (1 + fraction / 8) * 2.0 ** (exponent - 7)
    )


E4M3 = np.array([e4m3(byte) for byte in range(256)], np.float32)


@dataclass(frozen=True)
class Fp8:
    """How a checkpoint in FP8 says and stores it; a block of 0 is all rows or columns."""

    config: Mapping[str, Any]
    block: tuple[int, int]
    suffix: str = "_scale_inv"
    dtype: Any = np.float32
    shape: tuple[int, ...] | None = None  # of each scale, if it is a single one


QWEN = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
FP8 = {
    "blocks": Fp8(QWEN | {"weight_block_size": [16, 12]}, (16, 12)),
    "bfloat16 scales": Fp8(QWEN | {"weight_block_size": [8, 8]}, (8, 8), dtype=BF16),
    "one block": Fp8(QWEN, (128, 128)),
    "per tensor": Fp8(QWEN | {"weight_block_size": None}, (0, 0), shape=()),
    "AutoFP8": Fp8(
        {"quant_method": "fp8", "activation_scheme": "static"},
        (0, 0),
        "_scale",
        shape=(1,),
    ),
}


def fp8_arrays(
    how: Fp8, case: str = "llama"
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The tensors of a fixture with its linears in FP8, and the same values in float32."""
    stored, plain = arrays_of(case), dict(arrays_of(case))
    for name, weight in list(stored.items()):
        if not name.endswith("_proj.weight"):
            continue
        rows, columns = (
            of or size for of, size in zip(how.block, weight.shape, strict=True)
        )
        of_row, of_column = (
            np.arange(n) // of
            for n, of in zip(weight.shape, (rows, columns), strict=True)
        )
        grid = np.zeros((of_row[-1] + 1, of_column[-1] + 1), np.float32)
        np.maximum.at(grid, (of_row[:, None], of_column), np.abs(weight))
        grid = (grid / 448).astype(how.dtype)
        wide = grid.astype(np.float32)[of_row][:, of_column]
        stored[name] = (weight / wide).astype(ml_dtypes.float8_e4m3fn)
        stored[name + how.suffix] = (
            grid if how.shape is None else grid.reshape(how.shape)
        )
        if how.config.get("activation_scheme") == "static":
            stored[name.replace("weight", "input_scale")] = np.ones(1, np.float32)
        plain[name] = E4M3[stored[name].view(np.uint8)] * wide
    return stored, plain


def fp8_model(folder: Path, how: Fp8, case: str = "llama") -> tuple[Path, Path]:
    """A checkpoint in FP8, and one with the same values in float32."""
    stored, plain = fp8_arrays(how, case)
    config = config_of(case, quantization_config=dict(how.config))
    return write(folder / "fp8", stored, config), write(
        folder / "plain", plain, config_of(case)
    )


F = 64  # channels inside an expert of `mxfp4_arrays`: a multiple of 32


def e2m1(nibble: int) -> float:
    """The value of 4 bits: a sign, 2 bits of exponent with bias 1, 1 bit of fraction."""
    sign, exponent, fraction = -1.0 if nibble & 8 else 1.0, nibble >> 1 & 3, nibble & 1
    return sign * (
        fraction / 2 if exponent == 0 else (1 + fraction / 2) * 2.0 ** (exponent - 1)
    )


E2M1 = np.array([e2m1(nibble) for nibble in range(16)], np.float32)
E8M0 = np.array([2.0 ** (byte - 127) for byte in range(255)] + [np.nan]).astype(
    np.float32
)


def unpacked(blocks: Array, scales: Array) -> Array:
    """MXFP4 [E, out, in / 32, 16] and [E, out, in / 32] as [E, in, out]."""
    numbers = E2M1[np.stack([blocks & 15, blocks >> 4], axis=-1)].reshape(
        *scales.shape, 32
    )
    products = numbers * E8M0[scales][..., None]
    return products.reshape(*scales.shape[:2], -1).transpose(0, 2, 1)


def mxfp4_arrays(seed: int = 0) -> tuple[dict[str, Array], dict[str, Array]]:
    """The gpt_oss fixture with other experts, in MXFP4, and the same values in bfloat16."""
    rng, stored = np.random.default_rng(seed), dict(arrays_of("gpt_oss"))
    plain = dict(stored)
    for i in range(2):
        of = f"model.layers.{i}.mlp.experts."
        bias = (0.3 * rng.standard_normal((5, 2 * F))).astype(BF16)
        stored[f"{of}gate_up_proj_bias"] = plain[f"{of}gate_up_proj_bias"] = bias
        for name, rows, width in (("gate_up_proj", 2 * F, 32), ("down_proj", 32, F)):
            del stored[of + name]
            shape = (5, rows, width // 32)
            blocks = rng.integers(0, 256, (*shape, 16), np.uint8)
            scales = rng.integers(122, 126, shape, np.uint8)
            stored |= {f"{of}{name}_blocks": blocks, f"{of}{name}_scales": scales}
            plain[of + name] = unpacked(blocks, scales).astype(BF16)
    return stored, plain


def mxfp4_model(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of gpt-oss in MXFP4, and one with the same values in bfloat16."""
    stored, plain = mxfp4_arrays()
    how = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    config = config_of("gpt_oss", intermediate_size=F)
    quantised = config | {"quantization_config": how}
    return write(folder / "mxfp4", stored, quantised), write(
        folder / "plain", plain, config
    )
