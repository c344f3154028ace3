"""FP8 and MXFP4 weights: tensors as transformers holds them, de-quantised when they are read."""

from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np

from refimpl.model.ops import Array
from refimpl.model.weight import DTYPES, StoredTensor

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
    """FP8 weights (E4M3) [out, in], with a factor per block: ``float32(weight) float32(factor)``.

    The product is rounded to `dtype`.

    Args:
        quantised: The file's weights.
        factors: The file's factors, one per block.
        block: Rows and columns of a block; those at the end may be smaller.

    Source: DeepSeek-V3, arXiv:2412.19437, section 3.3; E4M3: arXiv:2209.05433.
    """

    quantised: StoredTensor
    factors: StoredTensor
    block: tuple[int, int]
    kind: str = "FP8"

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in the file."""
        return prod(self.shape)

    def rows(self, rows: slice | Array) -> Array:
        """Some rows, in `dtype`."""
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
    """MXFP4 weights of experts: numbers of 4 bits (E2M1) with a power of 2 for 32 of them (E8M0).

    The file holds blocks [E, out, in / 32, 16], two numbers a byte, and powers [E, out, in / 32].
    Read, it is [E, in, out] in bfloat16, which holds each such number exactly.

    Args:
        blocks: The file's numbers.
        powers: The file's exponents, plus 127; 255 is NaN.

    Source: OCP Microscaling Formats (MX) Specification 1.0, sections 5.3 and 5.4.
    """

    blocks: StoredTensor
    powers: StoredTensor
    kind: str = "MXFP4"

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers in the file."""
        return prod(self.blocks.shape)

    def rows(self, rows: slice | Array) -> Array:
        """Some experts, bfloat16."""
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
