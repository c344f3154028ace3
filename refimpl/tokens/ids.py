"""Token ids from a file of ids."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refimpl.errors import RefimplError
from refimpl.tokens.disk import parsed, reading
from refimpl.tokens.samples import SAMPLES, SEQ_LEN, Tokens, cut, require_sizes, spread

_ROW = (
    'a JSON list of 64-bit integers on each line, or an object with it as "input_ids" or "tokens"'
)


def id_tokens(
    path: str | Path,
    samples: int | None = None,
    seq_len: int | None = None,
    default_seq_len: int = SEQ_LEN,
) -> Tokens:
    r"""Read token ids as they are: no BOS is added.

    Rows of a file are its samples (the first `samples` of them, cut to the first `seq_len` ids);
    a one-dimensional array is cut like a tokenised text.

    Args:
        path: `.npy` of integers, [N] or [rows, width], or `.jsonl`, one row per line.
        samples: Number of samples, n; None for all rows (8 from a one-dimensional array).
        seq_len: Tokens per sample, S; None for the width of the rows.
        default_seq_len: What None means for a one-dimensional array.

    Returns:
        The samples, [n, S].

    Raises:
        RefimplError: A file that is missing, unreadable, malformed, of another kind or dtype, with
            rows of unequal length, or with too few ids.

    Source:
        Ours.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "ids.jsonl")
        ...     _ = file.write_text('[5, 6, 7]\n{"input_ids": [8, 9, 10]}\n')
        ...     id_tokens(file, seq_len=2).ids.tolist()
        [[5, 6], [8, 9]]
    """
    path = Path(path)
    stored = read_ids(path)
    if stored.ndim == 1:
        samples = SAMPLES if samples is None else samples
        seq_len = default_seq_len if seq_len is None else seq_len
        require_sizes(samples, seq_len)
        ids = cut(stored, samples, seq_len, None, str(path))
        return Tokens(ids, f"{path.name}, {spread(ids, stored.size)}, ids as given", "ids")
    rows, width = stored.shape
    samples = rows if samples is None else samples
    seq_len = width if seq_len is None else seq_len
    require_sizes(samples, seq_len)
    if samples > rows or seq_len > width:
        raise RefimplError(
            f"{path} holds {rows} rows of {width} ids",
            f"at least the {samples} rows of {seq_len} ids asked for",
            f"use --samples {min(samples, rows)} --seq-len {min(seq_len, width)}",
        )
    ids = np.array(stored[:samples, :seq_len], np.int64, order="C")
    part = f"{samples:,} of {rows:,} rows, {seq_len:,} of {width:,} ids each, as given"
    return Tokens(ids, f"{path.name}, {part}", "ids")


def read_ids(path: Path) -> npt.NDArray[Any]:
    """Read the ids of a file, whatever they are cut into later.

    Args:
        path: `.npy` of integers, [N] or [rows, width], or `.jsonl`, one row per line.

    Returns:
        The ids, [N] or [rows, width].

    Raises:
        RefimplError: A file that is missing, unreadable, malformed, of another kind or dtype, with
            rows of unequal length, or without rows.

    Source:
        Ours.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "ids.npy")
        ...     np.save(file, [[1, 2]])
        ...     read_ids(file).tolist()
        [[1, 2]]
    """
    readers = {".npy": _read_npy, ".jsonl": _read_jsonl}
    if path.suffix.lower() not in readers:
        raise RefimplError(
            f"token ids from {path}", "a .npy or a .jsonl file", "for a text use --text"
        )
    with reading(path):
        ids = readers[path.suffix.lower()](path)
    if ids.ndim == 2 and not ids.size:
        raise RefimplError(f"{path} holds no ids", "at least one", "give another file")
    return ids


def _read_npy(path: Path) -> npt.NDArray[Any]:
    try:
        ids = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:  # a damaged header raises anything, tokenize.TokenError included
        raise RefimplError(
            f"{path} is no array of integers ({error})",
            "a .npy file of integers",
            "save it with numpy.save(path, ids)",
        ) from error
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise RefimplError(
            f"{path} holds {ids.dtype} of shape {list(ids.shape)}",
            "integers, [tokens] or [samples, tokens]",
            "save integer ids (numpy: ids.astype(numpy.int64))",
        )
    if ids.dtype == np.uint64 and ids.size and ids.max() > np.iinfo(np.int64).max:
        raise RefimplError(f"{path} holds the id {ids.max()}", "64-bit ids", "save other ids")
    return ids


def _read_jsonl(path: Path) -> npt.NDArray[Any]:
    rows: list[list[int]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            here = f"{path} line {number}"
            row = parsed(line, here)
            if isinstance(row, dict):
                row = row.get("input_ids", row.get("tokens"))
            if not isinstance(row, list) or any(type(i) is not int or abs(i) >= 2**63 for i in row):
                raise RefimplError(f"{here} is no row of token ids", _ROW, "correct the line")
            if rows and len(row) != len(rows[0]):
                raise RefimplError(
                    f"{here} has {len(row)} ids, the lines before it have {len(rows[0])}",
                    "rows of equal length",
                    "cut them to one length, or save all ids as a one-dimensional .npy",
                )
            rows.append(row)
    return np.array(rows, np.int64).reshape(len(rows), len(rows[0]) if rows else 0)
