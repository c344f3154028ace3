"""FP8 and MXFP4 checkpoints: what `quantization_config` says of them, and their values.

FP8: DeepSeek-V3, arXiv:2412.19437, section 3.3. MXFP4: OCP Microscaling Formats 1.0, section 5.
"""

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

FORMAT_KEYS = {  # most only say what the tensors show
    "quant_method",
    "fmt",
    "expert_dtype",
    "activation_scheme",
    "weight_block_size",
    "scale_fmt",
    "dequantize",
    "modules_to_not_convert",
    "ignored_layers",
    "modules_to_convert",
}
FORMATS = ("e4m3", "float8_e4m3fn")
ONLY = {"quant_method": ("fp8", "mxfp4"), "fmt": FORMATS, "expert_dtype": ("fp8",)}
OF_ACTIVATIONS = (".input_scale", ".activation_scale")
Quantised = Mapping[str, StoredTensor]
# The tensor by its name, and the names of the tensors that it stands for
Found = Iterator[tuple[ConvertedTensor, tuple[str, ...]]]


def converted_blocks(
    config: Any, tensors: Quantised, source: str
) -> dict[str, ConvertedTensor]:
    """The tensors under the names that they have unquantised; scales are left out."""
    block = block_size(config, source)
    problems, made, used = list[str](), dict[str, ConvertedTensor](), set[str]()
    packed = config["quant_method"] == "mxfp4"
    found = _packed(tensors, problems) if packed else _scaled(tensors, block, problems)
    for tensor, names in found:
        made[tensor.name], used = tensor, used.union(names)
    plain = {name: x for name, x in tensors.items() if name not in used}
    unread = [x for x in plain.values() if x.dtype not in STORED_DTYPES]
    problems += [f"{x.name}: {x.dtype} without its scales" for x in unread]
    if problems or not made:
        raise RefimplError(
            f"{source} describes quantised weights that are not there, or not whole:",
            "FP8 weights (E4M3) with their scales, or MXFP4 blocks with theirs",
            "download the checkpoint again, or use the original one",
            problems,
        )
    for name, x in plain.items():
        made[name] = ConvertedTensor(name, x.dtype, x.shape, x.dtype, x.pieces)
    return made


def block_size(config: Any, source: str) -> list[int]:
    """Rows and columns of the blocks of FP8 weights; [] if the checkpoint states none."""
    entries = config if isinstance(config, dict) else {}
    method = entries.get("quant_method")
    odd = method is None or any(
        value
        not in (
            ONLY.get(key, (value,)) if key in FORMAT_KEYS else (None, False, [], {})
        )
        for key, value in entries.items()
    )
    block = entries.get("weight_block_size") or []
    pair = isinstance(block, list) and [type(x) for x in block] in ([int, int], [])
    if odd or not pair or not all(0 < x < 1 << 31 for x in block):
        how = f"quantised by {method}: {config!r:.200}" if config else "not quantised"
        raise RefimplError(
            f"{source} describes a checkpoint that is {how}",
            "quant_method fp8 (E4M3, with scales of blocks or of tensors) or mxfp4",
            "one that is not quantised needs no conversion; de-quantise others by transformers' "
            "model.dequantize().save_pretrained(DIR)",
        )
    return block


def _scaled(tensors: Quantised, stated: list[int], problems: list[str]) -> Found:
    """FP8 weights with their scales; scales of activations belong to them, and are not used."""
    for name, scale in tensors.items():
        base, weight_suffix, suffix = name.rpartition(".weight_scale")
        if not weight_suffix or suffix not in ("", "_inv"):
            continue
        weight = tensors.get(f"{base}.weight")
        right = (
            weight is not None and weight.dtype == "F8_E4M3" and len(weight.shape) == 2
        )
        if weight is None or not right or 0 in weight.shape:
            problems.append(f"{base}.weight: expected F8_E4M3 of 2 axes beside {name}")
            continue
        single = not stated and prod(scale.shape) == 1
        sizes = weight.shape if single else stated or [128, 128]
        block = [min(x, n) for x, n in zip(sizes, weight.shape, strict=True)]
        grid = tuple(-(-x // of) for x, of in zip(weight.shape, block, strict=True))
        if scale.dtype not in STORED_DTYPES or not (single or scale.shape == grid):
            problems.append(
                f"{name}: expected floats in the shape {[*grid]}, or a single one"
            )
            continue
        pieces = partial(scaled_weight, weight, scale, block)
        names = (weight.name, name, *(base + x for x in OF_ACTIVATIONS))
        yield ConvertedTensor(weight.name, "F32", weight.shape, "FP8", pieces), names


def scaled_weight(
    weight: StoredTensor, scale: StoredTensor, block: Any
) -> Iterator[Array]:
    """An FP8 weight (E4M3) [out, in] times a scale per block, in float32."""
    (count, width), (height, across) = weight.shape, block
    grid = scale.array.reshape(-(-count // height), -(-width // across)).astype(
        np.float32
    )
    wide = grid.repeat(height, axis=0)[:count].repeat(across, axis=1)[:, :width]
    stored = _bytes(weight, slice(None)).view(ml_dtypes.float8_e4m3fn)
    yield stored.astype(np.float32) * wide


def _packed(tensors: Quantised, problems: list[str]) -> Found:
    """MXFP4 experts [E, in, out]: blocks and their powers."""
    bases = {
        name.rpartition("_")[0]
        for name in tensors
        if name.endswith(("_blocks", "_scales"))
    }
    for base in sorted(bases):
        names = f"{base}_blocks", f"{base}_scales"
        both = [tensors[name] for name in names if name in tensors]
        shape = both[-1].shape
        bytes_alone = [x.dtype for x in both] == ["U8", "U8"] and base not in tensors
        if not bytes_alone or len(shape) != 3 or both[0].shape != (*shape, 16):
            wanted = (
                "U8 [E, out, in / 32, 16] and U8 [E, out, in / 32], and no such tensor"
            )
            problems.append(f"{base}: expected {wanted}")
            continue
        experts, rows, runs = shape
        pieces = partial(unpacked_experts, *both)
        yield (
            ConvertedTensor(base, "BF16", (experts, 32 * runs, rows), "MXFP4", pieces),
            names,
        )


def unpacked_experts(blocks: StoredTensor, powers: StoredTensor) -> Iterator[Array]:
    """MXFP4 experts [in, out], exact: numbers of 4 bits (E2M1), a power of 2 (E8M0) for 32."""
    for expert in range(powers.shape[0]):
        one = slice(expert, expert + 1)
        packed, scales = _bytes(blocks, one)[0], _bytes(powers, one)[0]
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1).view(
            ml_dtypes.float4_e2m1fn
        )
        runs = nibbles.reshape(*scales.shape, 32).astype(np.float32)
        runs *= scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)[..., None]
        yield runs.reshape(len(scales), -1).T.astype(STORED_DTYPES["BF16"])


def _bytes(tensor: StoredTensor, rows: slice) -> Array:
    """Some rows of a tensor whose elements have one byte, as bytes."""
    count, *inner = tensor.shape
    return tensor.file.rows(tensor.offset, prod(inner), count, rows).reshape(-1, *inner)
