"""FP8 and MXFP4 checkpoints: what `quantization_config` says of them, and their values.

FP8: DeepSeek-V3, arXiv:2412.19437, section 3.3. MXFP4: OCP Microscaling Formats 1.0,
section 5.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.files.safetensors_file import ConvertedTensor
from refimpl.model.ops import Array
from refimpl.model.weight import STORED_DTYPES, StoredTensor

SUPPORTED_VALUES = {
    "quant_method": ("fp8", "mxfp4"),
    "fmt": ("e4m3", "float8_e4m3fn"),
    "expert_dtype": ("fp8",),
}
DESCRIPTIVE_KEYS = {  # they only say what the tensors show
    "activation_scheme",
    "weight_block_size",
    "scale_fmt",
    "dequantize",
    "modules_to_not_convert",
    "ignored_layers",
    "modules_to_convert",
}
UNSET: tuple[Any, ...] = (None, False, [], {})  # with these, any other key says nothing
MOST_ROWS = 1 << 31  # of a block: larger numbers overflow NumPy's sizes
_SCALE_NAME = re.compile(r"(.*)\.weight_scale(_inv)?", re.DOTALL)
_PACKED_NAME = re.compile(r"(.*)_(blocks|scales)", re.DOTALL)
_RUN = 32  # numbers of MXFP4 that share a power of 2
StoredTensors = Mapping[str, StoredTensor]
# Each converted tensor, with the names of the stored ones that it replaces
Converted = Iterator[tuple[ConvertedTensor, list[str]]]


def converted_blocks(
    config: Any, tensors: StoredTensors, source: str
) -> dict[str, ConvertedTensor]:
    """The tensors under the names that they have unquantised; scales are left out."""
    block = block_size(config, source)
    problems: list[str] = []
    if config["quant_method"] == "mxfp4":
        quantised = _mxfp4_tensors(tensors, problems)
    else:
        quantised = _fp8_tensors(tensors, block, problems)
    converted = {}
    replaced = set()
    for tensor, names in quantised:
        converted[tensor.name] = tensor
        replaced.update(names)
    any_quantised = bool(converted)
    for name, x in tensors.items():
        if name in replaced:
            continue
        if x.dtype not in STORED_DTYPES:
            problems.append(f"{name}: {x.dtype} without its scales")
        converted[name] = ConvertedTensor(name, x.dtype, x.shape, x.dtype, x.pieces)
    if problems or not any_quantised:
        raise RefimplError(
            f"{source} describes quantised weights that are not there, or not whole:",
            "FP8 weights (E4M3) with their scales, or MXFP4 blocks with theirs",
            "download the checkpoint again, or use the original one",
            problems,
        )
    return converted


def block_size(config: Any, source: str) -> list[int]:
    """Rows and columns of the blocks of FP8 weights; [] if none are stated."""
    entries = config if isinstance(config, dict) else {}
    method = entries.get("quant_method")
    block = entries.get("weight_block_size") or []
    supported = all(_is_supported(key, value) for key, value in entries.items())
    if method is None or not supported or not _is_block(block):
        quantised = f"quantised by {method}: {config!r:.200}"
        raise RefimplError(
            f"{source} describes a checkpoint that is "
            f"{quantised if config else 'not quantised'}",
            "quant_method fp8 (E4M3, with scales of blocks or of tensors) or mxfp4",
            "one that is not quantised needs no conversion; de-quantise others by "
            "transformers' model.dequantize().save_pretrained(DIR)",
        )
    return block


def _is_supported(key: str, value: object) -> bool:
    """Whether the tensors can be read right without knowing more of an entry."""
    if key in SUPPORTED_VALUES:
        return value in SUPPORTED_VALUES[key]
    return key in DESCRIPTIVE_KEYS or value in UNSET


def _is_block(block: object) -> bool:
    """Whether a block has rows and columns, or is not stated at all."""
    if not isinstance(block, list) or len(block) not in (0, 2):
        return False
    return all(type(size) is int and 0 < size < MOST_ROWS for size in block)


def _fp8_tensors(
    tensors: StoredTensors, stated_block: list[int], problems: list[str]
) -> Converted:
    """FP8 weights with their scales; scales of activations are left out with them."""
    for name, scale in tensors.items():
        named = _SCALE_NAME.fullmatch(name)
        if not named:
            continue
        base = named[1]
        weight = tensors.get(f"{base}.weight")
        if (
            weight is None
            or weight.dtype != "F8_E4M3"
            or len(weight.shape) != 2
            or 0 in weight.shape
        ):
            problems.append(f"{base}.weight: expected F8_E4M3 of 2 axes beside {name}")
            continue
        rows, columns = weight.shape
        if not stated_block and prod(scale.shape) == 1:  # one scale for the tensor
            block = weight.shape
            grid = scale.shape
        else:
            height, width = stated_block or (128, 128)  # DeepSeek-V3's
            block = (min(height, rows), min(width, columns))
            grid = (-(-rows // block[0]), -(-columns // block[1]))
        if scale.dtype not in STORED_DTYPES or scale.shape != grid:
            problems.append(
                f"{name}: expected floats in the shape {[*grid]}, or a single one"
            )
            continue
        yield (
            ConvertedTensor(
                weight.name,
                "F32",
                weight.shape,
                "FP8",
                partial(scaled_weight, weight, scale, block),
            ),
            [weight.name, name, f"{base}.input_scale", f"{base}.activation_scale"],
        )


def scaled_weight(
    weight: StoredTensor, scale: StoredTensor, block: tuple[int, ...]
) -> Iterator[Array]:
    """An FP8 weight (E4M3) [out, in] times a scale per block, in float32."""
    rows, columns = weight.shape
    height, width = block
    grid = scale.array.astype(np.float32).reshape(-(-rows // height), -1)
    scales = grid.repeat(height, axis=0)[:rows].repeat(width, axis=1)[:, :columns]
    stored = _bytes(weight, slice(None)).view(ml_dtypes.float8_e4m3fn)
    yield stored.astype(np.float32) * scales


def _mxfp4_tensors(tensors: StoredTensors, problems: list[str]) -> Converted:
    """MXFP4 experts [E, in, out]: blocks and their powers."""
    bases = {named[1] for name in tensors if (named := _PACKED_NAME.fullmatch(name))}
    for base in sorted(bases):
        blocks = tensors.get(f"{base}_blocks")
        powers = tensors.get(f"{base}_scales")
        if (
            blocks is None
            or powers is None
            or (blocks.dtype, powers.dtype) != ("U8", "U8")
            or len(powers.shape) != 3
            or blocks.shape != (*powers.shape, _RUN // 2)
            or base in tensors
        ):
            problems.append(
                f"{base}: expected U8 [E, out, in / 32, 16] and U8 [E, out, in / 32], "
                "and no such tensor"
            )
            continue
        experts, rows, runs = powers.shape
        shape = (experts, _RUN * runs, rows)
        pieces = partial(unpacked_experts, blocks, powers)
        tensor = ConvertedTensor(base, "BF16", shape, "MXFP4", pieces)
        yield tensor, [blocks.name, powers.name]


def unpacked_experts(blocks: StoredTensor, powers: StoredTensor) -> Iterator[Array]:
    """MXFP4 experts [in, out], exact: numbers of 4 bits (E2M1) times powers of 2.

    32 numbers share a power. The first of two numbers in a byte is in its lower 4 bits.
    """
    for expert in range(powers.shape[0]):
        packed = _bytes(blocks, slice(expert, expert + 1))[0]
        scales = _bytes(powers, slice(expert, expert + 1))[0]
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1)
        numbers = nibbles.view(ml_dtypes.float4_e2m1fn).astype(np.float32)
        factors = scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        products = numbers.reshape(*scales.shape, _RUN) * factors[..., None]
        yield products.reshape(len(scales), -1).T.astype(STORED_DTYPES["BF16"])


def _bytes(tensor: StoredTensor, rows: slice) -> Array:
    """Some rows of a tensor whose elements have one byte, as bytes."""
    count, *inner = tensor.shape
    return tensor.file.rows(tensor.offset, prod(inner), count, rows).reshape(-1, *inner)
