"""llama.cpp's importance matrices: sums of squares of what linears read, without the text."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refimpl.errors import RefimplError
from refimpl.model.config import kind_of
from refimpl.model.model import Model
from refimpl.model.ops import Array
from refimpl.model.statistics import input_of

if TYPE_CHECKING:
    from refimpl.loading.gguf.gguf_file import GgufFile


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix for a model.

    Args:
        squares: Per block and trace point that is a linear's input, the mean over the tokens of
            the squares, [in], float64.
        samples: Chunks of text; 0 if unknown.
        seq_len: Tokens per chunk; 0 if unknown.
        source: Where it came from, one line for people.
        sha256: Of the means, as little-endian float64 bytes in order, in hex.
    """

    squares: tuple[Mapping[str, Array], ...]
    samples: int
    seq_len: int
    source: str
    sha256: str
    kind: str = "imatrix"
    bos: None = None


def read_imatrix(path: str | Path, model: Model) -> Imatrix:
    """Read what llama.cpp's `llama-imatrix` wrote as GGUF: ``mean_t x_tj^2 = in_sum2_j / counts``.

    Wanda's own statistic is the sum divided by the number of sequences. A constant factor changes
    neither Wanda's choice within a row nor OWL's comparison with the mean of a block.

    Args:
        path: The file.
        model: From `read_model`; every linear must have an entry of its width.

    Returns:
        The means; `prune` takes them in place of tokens.

    Raises:
        RefimplError: A file that is damaged, is of another model, or lacks a linear.

    Example:
        >>> from refimpl import read_model
        >>> read_imatrix("fixtures/text.txt", read_model("fixtures/llama"))
        Traceback (most recent call last):
        ...
        refimpl.errors.RefimplError: fixtures/text.txt is not a whole GGUF file: ...
    """
    from refimpl.loading.gguf.gguf_file import GgufFile  # few commands read one

    path = Path(path)
    file = GgufFile(path)
    if file.metadata.get("general.type") != "imatrix":
        raise RefimplError(
            f"{path} is a GGUF file of type {file.metadata.get('general.type')!r}",
            "an importance matrix, which llama-imatrix wrote with --output-format gguf",
            "pass that file, or omit --imatrix",
        )
    problems, squares = list[str](), list[dict[str, Array]]()
    for i, linears in enumerate(model.config.linears):
        of_block: dict[str, Array] = {}
        for name, (_, width) in linears.items():
            mean = _mean(file, i, name, width, problems)
            if mean is not None:  # the same for all linears that read this input
                of_block[input_of(name)] = mean
        squares.append(of_block)
    if problems:
        raise RefimplError(
            f"{path} does not fit {model.name}:",
            "in_sum2 and counts of every linear of this model",
            "use the importance matrix of this model, or calibrate with --text",
            problems,
        )
    sums = hashlib.sha256()
    for of_block in squares:
        for mean in of_block.values():
            sums.update(mean.astype("<f8").tobytes())
    chunks, size = (file.metadata.get(f"imatrix.chunk_{x}", 0) for x in ("count", "size"))
    texts = file.metadata.get("imatrix.datasets", ())
    source = ", ".join([path.name, *texts, "mean of squares per token"])
    return Imatrix(tuple(squares), chunks, size, source, sums.hexdigest())


def _mean(
    file: "GgufFile", block: int, linear: str, width: int, problems: list[str]
) -> Array | None:
    """The mean of squares [in] of one linear; None, and a problem noted, if the file has none."""
    from refimpl.loading.gguf.architectures import FUSED, NAMES, SHORT

    role, expert = kind_of(linear), [x for x in linear.split(".") if x.isdigit()]
    own, first = NAMES | SHORT, {"k_proj": "q_proj", "v_proj": "q_proj"}.get(role, role)
    names = [table[x] for table, x in ((own, role), (FUSED, first)) if x in table] or [role]
    entries = [[f"blk.{block}.{x}.weight.{kind}" for kind in ("in_sum2", "counts")] for x in names]
    found = next((entry for entry in entries if file.tensors.keys() >= {*entry}), None)
    ours = f"blocks.{block}.{linear}"
    if found is None:
        problems.append(f"{ours}: no in_sum2 (of blk.{block}.{names[0]}.weight)")
        return None
    total, counts = (file.tensors[name].array for name in found)
    total, counts = total.reshape(-1, total.shape[-1]), counts.reshape(-1)
    index = int(expert[0]) if expert else 0
    if total.shape[1] != width or len(total) != len(counts) or index >= len(total):
        problems.append(f"{ours}: expected {width} inputs, got {list(total.shape)}")
        return None
    sums, count = total[index].astype(np.float64), float(counts[index])
    if not (np.isfinite(sums).all() and (sums >= 0).all() and 0 <= count < np.inf):
        problems.append(f"{ours}: sums or counts that are negative or not finite")
        return None
    if count == 0 and (sums.any() or not expert):
        problems.append(f"{ours}: no token was counted")
        return None
    return sums / max(count, 1.0)
