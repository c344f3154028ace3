"""Safetensors files: checked when opened, written whole or in pieces; and refused formats."""

import errno
import json
import shlex
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from refimpl.errors import RefimplError, listed, reading
from refimpl.loading.files.documents import DOCUMENT, json_object, read_file
from refimpl.model.ops import Array
from refimpl.model.weight import STORED_DTYPES, StoredTensor, WeightFile, count_bad
from refimpl.running.file_system import open_file
from refimpl.running.threads import Progress

_PICKLE = (
    "convert it if you trust it, because pickles run code (transformers: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
)
_GGUF = "refimpl convert FILE.gguf -o FOLDER, and pass FOLDER"
QUANTISATION = "quantization_config"
CONVERTIBLE = ("fp8", "mxfp4")  # methods
_OTHER = "convert it (transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
CONVERSIONS = dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _PICKLE) | {
    ".gguf": _GGUF
}
CONVERSIONS |= dict.fromkeys((".h5", ".msgpack", ".onnx"), _OTHER)

_ACCEPTED = {
    "quantised": (
        f"weights in {', '.join(STORED_DTYPES)}; refimpl convert also reads GGUF, FP8 and MXFP4",
        "de-quantise it (transformers: model.dequantize().save_pretrained(DIR)) or use the "
        "original checkpoint",
    ),
    "multimodal": (
        "a text-only decoder, or a checkpoint that refimpl reads the text model of",
        "save only its language model (transformers: model.language_model.save_pretrained(DIR))",
    ),
    "adapter": (
        "the weights of a whole model",
        "merge it into its base model (peft: merge_and_unload().save_pretrained(DIR))",
    ),
}


def refusal(kind: str, problem: str) -> RefimplError:
    """The refusal of a "quantised" or "multimodal" checkpoint, or of an "adapter"."""
    return RefimplError(problem, *_ACCEPTED[kind])


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its name or its first bytes: Ollama's blobs have no suffix."""
    with reading(path):
        if not path.is_file() or path.suffix in (".json", ".safetensors"):
            return False
        with open_file(path) as file:
            return path.suffix.lower() == ".gguf" or file.read(4) == b"GGUF"


def refuse_convertible(path: Path, entries: Mapping[str, Any] | None = None) -> None:
    """Refuse a GGUF file, or FP8 or MXFP4 by a `config.json`, with the command that converts it."""
    how = (entries or {}).get(QUANTISATION)
    method = how.get("quant_method") if isinstance(how, dict) else None
    if method in CONVERTIBLE or (entries is None and is_gguf(path)):
        raise RefimplError(
            f"{path} is {'a GGUF file' if entries is None else f'quantised ({method})'}",
            f"a model with weights in {', '.join(STORED_DTYPES)}",
            f"{shlex.join(['refimpl', 'convert', str(path)])} -o FOLDER, and pass FOLDER",
        )


METADATA = "__metadata__"
ARRAY_DTYPES = {  # of tensors that are read as arrays
    **STORED_DTYPES,
    **{f"{x.upper()}{8 * n}": np.dtype(f"<{x}{n}") for x in "iu" for n in (1, 2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
    "C64": np.dtype(np.complex64),  # such as a rotation
}
_EXPECTED = "a .safetensors file, an index, or a folder that contains one"
_INDEX = 'an index: a JSON object with a "weight_map" from tensor to file name'


class SafetensorsFile(WeightFile):
    """A safetensors file: its metadata and tensors by name, in place (the library copies each)."""

    def __init__(self, path: Path) -> None:
        with reading(path, "a readable safetensors file"), open_file(path) as file:
            try:
                length = int.from_bytes(file.read(8), "little")
                if length > DOCUMENT:
                    raise ValueError(f"a header of {length:,} bytes")
                with safe_open(path, framework="np"):  # which checks offsets and length
                    pass
                header = json.loads(file.read(length))
                shapes = {n: x["shape"] for n, x in header.items() if n != METADATA}
                for (
                    name,
                    shape,
                ) in shapes.items():  # NumPy refuses some, though they are empty
                    if prod(size or 1 for size in shape) >= 1 << 60:
                        raise ValueError(f"{name}: the shape {shape}")
                super().__init__(path, file)
            except (SafetensorError, ValueError) as error:
                raise RefimplError(
                    f"{path} is not a whole safetensors file ({error})",
                    "a file written by safetensors, with a valid header, offsets and length",
                    "download or save the file again, and compare its size with the source",
                ) from error
        self.metadata: Mapping[str, str] = header.pop(METADATA, None) or {}
        self.tensors = {
            name: StoredTensor(
                self,
                name,
                x["dtype"],
                tuple(x["shape"]),
                8 + length + x["data_offsets"][0],
            )
            for name, x in header.items()
        }

    @property
    def arrays(self) -> dict[str, Array]:
        """The tensors as arrays, mapped; dtypes that NumPy lacks are refused."""
        if other := [x for x in self.tensors.values() if x.dtype not in ARRAY_DTYPES]:
            raise RefimplError(
                f"{self.path}: tensor {other[0].name} has dtype {other[0].dtype}",
                ", ".join(ARRAY_DTYPES),
                "write the tensor in the dtype of its computation",
            )
        mapped = np.memmap(self.path, np.uint8, "r")

        def array(x: StoredTensor) -> Array:
            dtype = ARRAY_DTYPES[x.dtype]
            end = x.offset + prod(x.shape) * dtype.itemsize
            return np.asarray(mapped[x.offset : end].view(dtype).reshape(x.shape))

        return {name: array(x) for name, x in self.tensors.items()}


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a safetensors file; contiguous arrays, as the library writes others in wrong order."""
    try:
        save_file({name: np.asarray(x, order="C") for name, x in arrays.items()}, path)
    except SafetensorError as error:  # the library's own class for an error of the disk
        raise OSError(errno.EIO, str(error)) from error


def open_files(path: Path) -> tuple[SafetensorsFile, ...]:
    """Open the files that hold a model's weights: a file, the shards of an index, or a folder's."""
    with reading(path, _EXPECTED):
        file = _file_of(path) if path.is_dir() else path
        if not file.exists():
            raise RefimplError(
                f"{path}: no such file or folder", _EXPECTED, "check the path"
            )
        if file.name.endswith(".index.json"):
            return _open_shards(file)
    if file.suffix != ".safetensors":
        raise RefimplError(
            f"{path}: {file.suffix or 'this file'} is not safetensors",
            _EXPECTED,
            CONVERSIONS.get(file.suffix, "save the model with save_pretrained(DIR)"),
        )
    if file.name.startswith("adapter_model"):
        raise refusal("adapter", f"{file} is an adapter, not a model")
    return (SafetensorsFile(file),)


def _file_of(folder: Path) -> Path:
    """The file that stands for a folder's model: model.safetensors, or its only index or file."""
    names = sorted(entry.name for entry in folder.iterdir())
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    tensors = [name for name in names if name.endswith(".safetensors")]
    candidates = (
        ["model.safetensors"] if "model.safetensors" in tensors else indices or tensors
    )
    if len(candidates) == 1:
        return folder / candidates[0]
    if candidates:
        raise RefimplError(
            f"{folder} has {len(candidates)} candidates: {listed(candidates)}",
            "model.safetensors, or one index, or one .safetensors file",
            "name the file itself; shards need their index, *.safetensors.index.json",
        )
    if "adapter_config.json" in names:
        raise refusal("adapter", f"{folder} is an adapter, not a model")
    others = [name for name in names if Path(name).suffix in CONVERSIONS]
    only = f", only {listed(others)}" if others else ""
    raise RefimplError(
        f"{folder} contains no .safetensors file{only}",
        "a folder with .safetensors weights",
        CONVERSIONS[Path(others[0]).suffix] if others else "check the path",
    )


def shard_of_tensor(index: Path) -> dict[str, str]:
    """The `weight_map` of an index: tensor to the name of its shard."""
    shard_of = json_object(read_file(index), str(index), _INDEX).get("weight_map")
    valid = isinstance(shard_of, dict) and all(
        isinstance(x, str) for x in shard_of.values()
    )
    if not valid or not shard_of:
        raise RefimplError(
            f"{index} is not an index of shards", _INDEX, "download it again"
        )
    return shard_of


def _open_shards(index: Path) -> tuple[SafetensorsFile, ...]:
    """The shards an index names, checked against it."""
    shard_of = shard_of_tensor(index)
    shards = list(dict.fromkeys(shard_of.values()))
    # A shard may be a link (hub caches consist of links), but it must be in the index's folder.
    odd = [
        x
        for x in shards
        if Path(x).name != x or "\\" in x or not x.endswith(".safetensors")
    ]
    if odd:
        raise RefimplError(
            f"{index} names shards that are not safetensors in its folder: {listed(odd)}",
            "plain names of .safetensors files",
            CONVERSIONS.get(Path(odd[0]).suffix, "get the model from its source"),
        )
    if absent := [shard for shard in shards if not (index.parent / shard).exists()]:
        raise RefimplError(
            f"{index} names shards that do not exist: {listed(absent)}",
            f"all {len(shards)} shards in the folder of the index",
            "download the missing shards",
        )
    files = tuple(SafetensorsFile(index.parent / shard) for shard in shards)
    stored = {(name, file.path.name) for file in files for name in file.tensors}
    problems = [
        f"{name}: only {'the file' if (name, shard) in stored else 'the index'} has it in {shard}"
        for name, shard in sorted(stored ^ shard_of.items())
    ]
    if problems:
        raise RefimplError(
            f"{index} does not match its shards:",
            "every tensor in the file that the index names, and no other tensor",
            "download the index and its shards again",
            problems,
        )
    return files


@dataclass(frozen=True)
class ConvertedTensor:
    """A tensor of the new file; `kind` is how the source stores it, `pieces` its values."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    kind: str
    pieces: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        """Bytes in the new file."""
        return prod(self.shape) * STORED_DTYPES[self.dtype].itemsize


def write_weights(
    path: Path, tensors: Sequence[ConvertedTensor], progress: Progress
) -> None:
    """Write a safetensors file, a piece at a time; spaces align its data to 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for x in tensors:
        start, end = end, end + x.nbytes
        header[x.name] = {
            "dtype": x.dtype,
            "shape": x.shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    done = 0
    with (
        path.open("wb") as file,
        np.errstate(all="ignore"),
    ):  # what overflows is counted
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            for piece in tensor.pieces():
                stored = np.ascontiguousarray(piece, STORED_DTYPES[tensor.dtype])
                if bad := count_bad(stored):
                    raise RefimplError(
                        f"{tensor.name} has {bad} values that are NaN or Inf in {stored.dtype}",
                        f"finite weights, in the range of {stored.dtype}",
                        "use --dtype float32, or repair the checkpoint",
                    )
                file.write(stored.reshape(-1).view(np.uint8).data)
                done += stored.nbytes
                progress(done, end)
