"""FP8 and MXFP4 checkpoints: what `quantization_config` says of them, and their values.

FP8: DeepSeek-V3, arXiv:2412.19437, section 3.3. MXFP4: OCP Microscaling Formats 1.0, section 5.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from refimpl.convert.written_folder import ConvertedTensor
from refimpl.errors import RefimplError
from refimpl.model.ops import Array
from refimpl.model.weight import STORED_DTYPES, StoredTensor

KEYS = {  # of each method; most only say what the tensors show
    "fp8": "fmt expert_dtype activation_scheme weight_block_size scale_fmt dequantize "
    "modules_to_not_convert ignored_layers modules_to_convert",
    "mxfp4": "modules_to_not_convert dequantize",
}
ONLY = {"fmt": ("e4m3", "float8_e4m3fn"), "expert_dtype": ("fp8",)}
OF_ACTIVATIONS = (".input_scale", ".activation_scale")
PIECE = 1 << 20  # weights that are de-quantised at once
Quantised = Mapping[str, StoredTensor]
# The tensor by its name, and the names of the tensors that it stands for
Found = Iterator[tuple[ConvertedTensor, tuple[str, ...]]]


def converted_blocks(config: Any, tensors: Quantised, source: str) -> dict[str, ConvertedTensor]:
    """The tensors under the names that they have unquantised; scales are left out."""
    sizes = block_sizes(config, source)
    problems, made, used = list[str](), dict[str, ConvertedTensor](), set[str]()
    found = _scaled(tensors, sizes, problems) if sizes else _packed(tensors, problems)
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


def block_sizes(config: Any, source: str) -> list[list[int]]:
    """Rows and columns that blocks of FP8 weights may have, [] of whole tensors; none of MXFP4."""
    method = config.get("quant_method") if isinstance(config, dict) else None
    if known := KEYS.get(str(method), "").split():
        odd = {
            key: value
            for key, value in config.items()
            if value not in ONLY.get(key, (value,))
            or (key not in (*known, "quant_method") and value not in (None, False, [], {}))
        }
        stated = config.get("weight_block_size", [128, 128]) or []
        pair = isinstance(stated, list) and [type(x) for x in stated] in ([int, int], [])
        if not odd and pair and all(0 < x < 1 << 31 for x in stated):
            either = [stated] if "weight_block_size" in config else [stated, []]
            return either if method == "fp8" else []
    raise RefimplError(
        f"{source} describes a checkpoint that is quantised by {method}: {config!r:.200}",
        "quant_method fp8 (E4M3, with scales of blocks or of tensors) or mxfp4",
        "de-quantise it (transformers: model.dequantize().save_pretrained(DIR)), or use the "
        "original checkpoint",
    )


def _scaled(tensors: Quantised, sizes: list[list[int]], problems: list[str]) -> Found:
    """FP8 weights with their scales; scales of activations belong to them, and are not used."""
    for name, scale in tensors.items():
        base, weight_suffix, suffix = name.rpartition(".weight_scale")
        if not weight_suffix or suffix not in ("", "_inv"):
            continue
        weight = tensors.get(f"{base}.weight")
        right = weight is not None and weight.dtype == "F8_E4M3" and len(weight.shape) == 2
        if weight is None or not right or 0 in weight.shape:
            got = "no tensor" if weight is None else f"{weight.dtype} {list(weight.shape)}"
            problems.append(f"{base}.weight: expected F8_E4M3 of 2 axes beside {name}, got {got}")
            continue
        blocks = dict[tuple[int, ...], Any]()  # by the shape of the scales
        for size in sizes:
            block = [min(x, n) for x, n in zip(size or weight.shape, weight.shape, strict=True)]
            grid = tuple(-(-x // of) for x, of in zip(weight.shape, block, strict=True))
            blocks |= {grid: block} if size else {(): block, (1,): block, grid: block}
        if scale.dtype not in STORED_DTYPES or scale.shape not in blocks:
            got = f"{scale.dtype} {list(scale.shape)}"
            problems.append(f"{name}: expected one of {[*map(list, blocks)]} of floats, got {got}")
            continue
        pieces = partial(scaled_rows, weight, scale, blocks[scale.shape])
        yield ConvertedTensor(weight.name, "F32", weight.shape, "FP8", pieces), (
            weight.name, name, *(base + x for x in OF_ACTIVATIONS),
        )  # fmt: skip


def scaled_rows(weight: StoredTensor, scale: StoredTensor, block: Any) -> Iterator[Array]:
    """FP8 weights (E4M3) [out, in] times a scale per block, in float32, some rows at a time."""
    (count, width), (height, across) = weight.shape, block
    grid = scale.array.reshape(-(-count // height), -(-width // across)).astype(np.float32)
    step = max(1, PIECE // width)
    for start in range(0, count, step):
        stored = _bytes(weight, slice(start, start + step)).view(ml_dtypes.float8_e4m3fn)
        wide = grid[np.arange(start, start + len(stored)) // height].repeat(across, axis=1)
        with np.errstate(all="ignore"):  # whoever writes counts infinities
            yield stored.astype(np.float32) * wide[:, :width]


def _packed(tensors: Quantised, problems: list[str]) -> Found:
    """MXFP4 experts [E, in, out]: blocks and their powers."""
    bases = {name.rpartition("_")[0] for name in tensors if name.endswith(("_blocks", "_scales"))}
    for base in sorted(bases):
        names = f"{base}_blocks", f"{base}_scales"
        both = [tensors[name] for name in names if name in tensors]
        shapes = [x.shape for x in both]
        bytes_alone = [x.dtype for x in both] == ["U8", "U8"] and base not in tensors
        if not bytes_alone or len(shapes[1]) != 3 or shapes[0] != (*shapes[1], 16):
            wanted = "U8 [E, out, in / 32, 16] and U8 [E, out, in / 32], and no such tensor"
            problems.append(f"{base}: expected {wanted}, got {shapes}")
            continue
        experts, rows, runs = shapes[1]
        pieces = partial(unpacked_experts, *both)
        yield ConvertedTensor(base, "BF16", (experts, 32 * runs, rows), "MXFP4", pieces), names


def unpacked_experts(blocks: StoredTensor, powers: StoredTensor) -> Iterator[Array]:
    """MXFP4 experts [in, out] one by one: numbers of 4 bits (E2M1), a power of 2 (E8M0) for 32.

    bfloat16 holds each product exactly.
    """
    for expert in range(powers.shape[0]):
        one = slice(expert, expert + 1)
        packed, scales = _bytes(blocks, one)[0], _bytes(powers, one)[0]
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1).view(ml_dtypes.float4_e2m1fn)
        runs = nibbles.reshape(*scales.shape, 32).astype(np.float32)
        with np.errstate(all="ignore"):
            runs *= scales.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)[..., None]
            yield runs.reshape(len(scales), -1).T.astype(STORED_DTYPES["BF16"])


def _bytes(tensor: StoredTensor, rows: slice) -> Array:
    """Some rows of a tensor whose elements have one byte, as bytes."""
    count, *inner = tensor.shape
    return tensor.file.rows(tensor.offset, prod(inner), count, rows).reshape(-1, *inner)
