"""What llama.cpp's own programs write: the log of llama-eval-callback, and saved logits."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import read_file, reading
from refimpl.model.model import BlockWeights
from refimpl.model.ops import Array
from refimpl.storage.file_system import MIB, open_file

LOG, LOGITS_FILE = 256 * MIB, 512 * MIB  # bytes of a log, and of a file of logits
LARGEST = 1 << 27  # numbers of a tensor of a log, which are in memory one at a time
LINE = 1 << 12  # bytes of a line
SHOWN = 3  # numbers at each end of an axis
HALF_UNIT = 0.5e-4  # printed numbers have four decimals
SAVED, TOKENS = "llamacpp-*.bin", "-tokens.bin"  # the files of `llama-debug --save-logits`
TENSOR = re.compile(rb"(\w+)\) +([\w ]+)\(.*\) = \{(\d{1,9}), (\d{1,9}), (\d{1,9}), (\d{1,9})\}\s*")
NUMBER = re.compile(rb"-?(?:\d{1,50}(?:\.\d{1,50})?|nan|inf)")
SUM = re.compile(rb"\s*sum += +(" + NUMBER.pattern + rb")\s*")
COUNT, ID = re.compile(rb".*number of input tokens = (\d{1,9})\s*"), re.compile(rb"\D*(\d{1,9})\s*")


def is_log(head: bytes) -> bool:
    """Whether a text begins as the log of a callback for ggml's tensors."""
    return re.search(rb" = \(\w{1,9}\) +[\w ]{1,40}\(", head) is not None


@dataclass(frozen=True)
class PrintedTensor:
    """A tensor of a log: its axes, the outermost first, the numbers in print, and their sum."""

    shape: tuple[int, ...]
    numbers: Array
    sum: float

    def array(self) -> Array:
        """The tensor in float64, NaN where nothing is printed, and infinite where NaN is."""
        shown = [np.arange(size) for size in self.shape]
        shown[1:] = [x if len(x) <= 2 * SHOWN else x[np.r_[:SHOWN, -SHOWN:0]] for x in shown[1:]]
        values = np.full(self.shape, np.nan)
        values[np.ix_(*shown)] = self.numbers.reshape([len(x) for x in shown])
        return values


def logged(path: Path) -> tuple[Mapping[str, Array], dict[str, float]]:
    """The first tensor of a name in a log, the last of a name and operation; ids; and all sums."""
    tensors: dict[str, PrintedTensor] = {}
    ids, left, name, numbers = list[int](), 0, "", list[bytes]()
    shape: tuple[int, ...] = ()
    operation = ""
    with reading(path), open_file(path, LOG) as file:
        while line := file.readline(LINE):
            before, _, after = line.partition(b" = (")
            if after and (found := TENSOR.fullmatch(after)):
                name = before.rpartition(b": ")[2].strip().decode("utf-8", "replace")
                shape = tuple(int(x) for x in reversed(found.groups()[2:]))
                operation, numbers = found[2].decode().strip(), []
            elif name and (total := SUM.fullmatch(line)):
                shown = prod((shape[0], *(min(x, 2 * SHOWN) for x in shape[1:])))
                if len(numbers) < shown and shape[0] > 1:
                    continue  # each of the outermost axis has its sum, that of all
                if len(numbers) != shown:
                    raise _torn(path, f"{name} has {len(numbers)} numbers of {shown}")
                if prod(shape) <= LARGEST:
                    values = np.array(numbers, np.float64)
                    values[np.isnan(values)] = np.inf
                    printed = PrintedTensor(shape, values, float(total[1]))
                    tensors.setdefault(name, printed)
                    tensors[f"{name}:{operation}"] = printed
                name = ""
            elif name:
                numbers += NUMBER.findall(line)
            elif found := COUNT.fullmatch(line):
                left, ids = int(found[1]), []
            elif left and (found := ID.fullmatch(line)):
                ids, left = [*ids, int(found[1])], left - 1
    if name:
        raise _torn(path, f"it ends within {name}")
    arrays = {name: x.array for name, x in tensors.items()}  # made when they are asked for
    known = BlockWeights(arrays | ({"inp_tokens": np.array(ids)} if ids else {}))
    return known, {name: x.sum for name, x in tensors.items()}


def logits_files(path: Path) -> list[Path]:
    """The file of logits that llama-debug saved: a path itself, or one of a folder."""
    every = [path] if path.match(SAVED) and path.is_file() else sorted(path.glob(SAVED))
    return [x for x in every if not x.name.endswith(TOKENS) and _tokens(x).is_file()]


def saved_logits(path: Path) -> dict[str, Array]:
    """The logits of the last token that llama-debug saved, and the ids of all tokens."""
    with reading(path):
        numbers, ids = read_file(path, LOGITS_FILE), read_file(_tokens(path))
    if len(numbers) % 4 or len(ids) % 4 or not numbers:
        raise _torn(path, f"{len(numbers):,} bytes, and {len(ids):,} of tokens")
    return {"logits": np.frombuffer(numbers, "<f4"), "input_ids": np.frombuffer(ids, "<i4")}


def _tokens(path: Path) -> Path:
    """The file of token ids beside one of logits."""
    return path.with_name(path.name.removesuffix(".bin") + TOKENS)


def _torn(path: Path, problem: str) -> RefimplError:
    """The error for a file that is not whole."""
    return RefimplError(
        f"{path}: {problem}",
        "the whole output of llama-eval-callback, or of llama-debug --save-logits",
        "run the program again, and let it end",
    )
