"""FP8 and MXFP4 weights: what `quantization_config` says of them, and how they are read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from refimpl.loading.files.refused_formats import refusal
from refimpl.model.ops import Array
from refimpl.model.weight import DTYPES, StoredTensor

CONFIG = "quantization_config"
Block = tuple[int, int]  # rows and columns; 0 stands for all
WHOLE_TENSOR = (0, 0)

_METHODS = {  # the keys of each method; most only say what the tensors show
    "fp8": "fmt expert_dtype activation_scheme weight_block_size scale_fmt dequantize "
    "modules_to_not_convert ignored_layers modules_to_convert",
    "mxfp4": "modules_to_not_convert dequantize",
}
_ONLY = {"fmt": ("e4m3", "float8_e4m3fn"), "expert_dtype": ("fp8",)}
_SCALES = ("_scale_inv", "_scale")
_OF_ACTIVATIONS = (".input_scale", ".activation_scale")

PIECE = 1 << 20  # weights that are de-quantised at once
E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # E2M1 without the sign, its highest bit
NIBBLES = np.array([*FP4, *(-x for x in FP4)], np.float32)
PAIRS = np.stack([np.tile(NIBBLES, 16), np.repeat(NIBBLES, 16)], axis=1)  # of a byte, low first
POWERS = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32(np.nan))  # E8M0


def stored_bytes(tensor: StoredTensor, rows: slice | Array) -> Array:
    """Some rows of a tensor whose elements have one byte, as bytes."""
    count, *inner = tensor.shape
    stored = tensor.file.rows(tensor.offset, prod(inner), count, rows)
    return stored.reshape(len(stored), *inner)


@dataclass(frozen=True)
class BlockScaled(StoredTensor):
    """FP8 weights (E4M3) [out, in] times a factor per block, in float32.

    Source: DeepSeek-V3, arXiv:2412.19437, section 3.3; E4M3: arXiv:2209.05433.
    """

    quantised: StoredTensor
    factors: StoredTensor
    block: Block
    kind: str = "FP8"

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in the file."""
        return prod(self.shape)

    def rows(self, rows: slice | Array) -> Array:
        """Some rows, float32."""
        (count, width), (height, across) = self.shape, self.block
        stored = stored_bytes(self.quantised, rows)
        grid = self.factors.array.reshape(-(-count // height), -(-width // across))
        factors = grid[np.arange(count)[rows] // height].astype(np.float32)
        values = np.empty(stored.shape, self.numpy_dtype)
        step = max(1, PIECE // max(1, width))
        with np.errstate(all="ignore"):  # whoever reads counts infinities
            for start in range(0, len(stored), step):
                piece = slice(start, start + step)
                wide = np.repeat(factors[piece], across, axis=1)[:, :width]
                values[piece] = E4M3[stored[piece]] * wide
        return values


@dataclass(frozen=True)
class Packed(StoredTensor):
    """MXFP4 weights of experts [E, in, out]: numbers of 4 bits (E2M1) with a power of 2 for 32.

    Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3 and 5.4.
    """

    blocks: StoredTensor  # [E, out, in / 32, 16], two numbers a byte
    powers: StoredTensor  # [E, out, in / 32], E8M0
    kind: str = "MXFP4"

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers in the file."""
        return prod(self.blocks.shape)

    def rows(self, rows: slice | Array) -> Array:
        """Some experts, bfloat16, which holds each such number exactly."""
        _, width, count = self.shape
        numbers, powers = (stored_bytes(x, rows) for x in (self.blocks, self.powers))
        values = np.empty((len(numbers), count, width), DTYPES["BF16"])
        step = max(1, PIECE // max(1, width))
        with np.errstate(all="ignore"):
            for expert in range(len(numbers)):
                for start in range(0, count, step):
                    at = expert, slice(start, start + step)
                    runs = np.take(PAIRS, numbers[at], axis=0).reshape(*powers[at].shape, 32)
                    runs *= np.take(POWERS, powers[at])[..., None]
                    values[at] = runs.reshape(-1, width)
        return values.transpose(0, 2, 1)


def read_quantisation(entries: Mapping[str, Any], source: str) -> tuple[Block, ...] | None:
    """Shapes that blocks of FP8 weights may have; () of MXFP4; None without quantisation."""
    value = entries.get(CONFIG)
    if not value:
        return None
    method = value.get("quant_method") if isinstance(value, dict) else None
    if not isinstance(method, str) or method not in _METHODS:
        named = f" by {method}" if isinstance(method, str) else ""
        raise refusal("quantised", f"{source} describes a checkpoint that is quantised{named}")
    known = {"quant_method", *_METHODS[method].split()}
    problems = [
        f"{key}: only {' or '.join(expected)} is supported, got {value[key]!r:.60}"
        for key, expected in _ONLY.items()
        if value.get(key, expected[0]) not in expected
    ] + [
        f"{key}: not understood (value {entry!r:.60})"
        for key, entry in value.items()
        if key not in known and entry not in (None, False, [], {})
    ]
    size = value.get("weight_block_size", [128, 128])
    pair = isinstance(size, list) and [type(x) for x in size] == [int, int]
    if method == "fp8" and size is not None and not (pair and 0 < min(size) <= max(size) < 1 << 31):
        got = f"got {size!r:.60}"
        problems.append(f"weight_block_size: expected the rows and columns of a block, {got}")
    if problems:
        what = f"{source}: {CONFIG} asks for what refimpl does not compute:"
        raise refusal("quantised", what, problems)
    if method == "mxfp4":
        return ()
    if size is None:
        return (WHOLE_TENSOR,)
    block = size[0], size[1]
    return (block,) if "weight_block_size" in value else (block, WHOLE_TENSOR)


def without_quantisation(
    entries: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, Any]:
    """A `config.json` for the tensors as they are after reading."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.kind != tensor.dtype}
    dtype = next(DTYPES[kind].name for kind in DTYPES if kind in kinds)
    rest = {key: value for key, value in entries.items() if key not in (CONFIG, "torch_dtype")}
    return rest | {"dtype": dtype}


def dequantised(
    tensors: Mapping[str, StoredTensor], blocks: tuple[Block, ...], path: Path
) -> dict[str, StoredTensor]:
    """The tensors under the names that they have unquantised; what belongs to them is left out."""
    problems = list[str]()
    kind = "FP8" if blocks else "MXFP4"
    made = _scaled(tensors, blocks, problems) if blocks else _packed(tensors, problems)
    found = {name: tensor for name, (tensor, _) in made.items()}
    used = {name for _, names in made.values() for name in names}
    if not found and not problems:
        problems.append(f"no tensor is {kind}, as {CONFIG} of config.json says")
    if problems:
        raise refusal("quantised", f"{path}: its {kind} weights are not whole:", problems)
    return {name: x for name, x in tensors.items() if name not in used} | found


# Tensors by their names, and the names of the file's tensors that they stand for
Made = dict[str, tuple[StoredTensor, tuple[str, ...]]]


def _scaled(
    tensors: Mapping[str, StoredTensor], blocks: tuple[Block, ...], problems: list[str]
) -> Made:
    """FP8 weights with their factors; scales of activations belong to them, and are not used."""
    made: Made = {}
    for name, scale in tensors.items():
        base = next((name.removesuffix(x) for x in _SCALES if name.endswith(f".weight{x}")), "")
        if not base:
            continue
        weight = tensors.get(base)
        if weight is None or weight.dtype != "F8_E4M3" or len(weight.shape) != 2:
            got = "no tensor" if weight is None else f"{weight.dtype} {list(weight.shape)}"
            problems.append(f"{base}: expected F8_E4M3 of 2 axes beside {name}, got {got}")
            continue
        fits = dict(_grids(weight.shape, blocks))
        if scale.dtype not in DTYPES:
            problems.append(f"{name}: expected {', '.join(DTYPES)}, got {scale.dtype}")
        elif scale.shape not in fits:
            shapes = " or ".join(str(list(shape)) for shape in fits)
            problems.append(f"{name}: expected shape {shapes}, got {list(scale.shape)}")
        else:
            own = base.removesuffix(".weight")
            names = (base, name, *(own + suffix for suffix in _OF_ACTIVATIONS))
            place = weight.file, base, "F32", weight.shape, weight.offset
            made[base] = BlockScaled(*place, weight, scale, fits[scale.shape]), names
    problems += [
        f"{name}: F8_E4M3 without {name}{_SCALES[0]}"
        for name, x in tensors.items()
        if x.dtype == "F8_E4M3" and not any(f"{name}{suffix}" in tensors for suffix in _SCALES)
    ]
    return made


def _grids(
    shape: tuple[int, ...], blocks: Iterable[Block]
) -> Iterable[tuple[tuple[int, ...], Block]]:
    """Shapes that the factors of a weight may have, and the block of each."""
    for block in blocks:
        rows, columns = (of or size or 1 for of, size in zip(block, shape, strict=True))
        yield (-(-shape[0] // rows), -(-shape[1] // columns)), (rows, columns)
        if block == WHOLE_TENSOR:
            yield from (((), (rows, columns)), ((1,), (rows, columns)))


def _packed(tensors: Mapping[str, StoredTensor], problems: list[str]) -> Made:
    """MXFP4 weights: blocks and their powers."""
    made: Made = {}
    parts = ("_blocks", "_scales")
    bases = {name[: -len(x)]: None for name in tensors for x in parts if name.endswith(x)}
    for base in bases:
        names = tuple(base + part for part in parts)
        if absent := [name for name in names if name not in tensors]:
            problems.append(f"{absent[0]}: missing")
            continue
        blocks, powers = (tensors[name] for name in names)
        shape = blocks.shape
        if base in tensors:
            problems.append(f"{base}: stored twice, once as {names[0]}")
        elif (blocks.dtype, powers.dtype) != ("U8", "U8"):
            problems.append(f"{names[0]}: expected U8 and U8, got {blocks.dtype}, {powers.dtype}")
        elif len(shape) != 4 or shape[3] != 16:
            problems.append(f"{names[0]}: expected shape [E, out, in / 32, 16], got {list(shape)}")
        elif powers.shape != shape[:3]:
            wanted = f"expected shape {list(shape[:3])}, got {list(powers.shape)}"
            problems.append(f"{names[1]}: {wanted}")
        else:
            read = shape[0], 32 * shape[2], shape[1]
            packed = Packed(blocks.file, base, "BF16", read, blocks.offset, blocks, powers)
            made[base] = packed, names
    return made
