"""What another program wrote, recognised by its content: arrays by the program's own names."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO
from zipfile import ZipFile

import ml_dtypes
import numpy as np

from refimpl.candidates.llama_cpp import HALF_UNIT, is_log, logged, logits_files, saved_logits
from refimpl.candidates.names import INPUT, LOGITS
from refimpl.errors import RefimplError, listed
from refimpl.loading.files.file_reading import reading
from refimpl.loading.files.safetensors_file import ARRAY_DTYPES, SafetensorsFile
from refimpl.model.model import BlockWeights
from refimpl.model.ops import Array
from refimpl.storage.file_system import MIB, open_file

IDS = ("token_ids", "input_ids", "inp_tokens", "embed.hook_in")  # names of token ids
HEAD = 1 << 16  # bytes that tell what a file is
MOST = 4096 * MIB  # bytes of all arrays of an archive or a folder, which are read into memory
DENSEST = 16  # arrays are at most so many times as large as their archive,
SMALL = 64 * MIB  # or no larger than this
PICKLE = "data.pkl"  # in a file that torch.save wrote
NAMES = {dtype.name for dtype in ARRAY_DTYPES.values()}
PAIR = np.dtype("V2")  # what NumPy makes of bfloat16
DUMPED = re.compile(  # files of transformers' model_addition_debugger_context
    r"[^.]+?(?:\.(?P<module>.+?))?_"
    r"(?P<what>outputs(?:_0)?|outputs_logits|inputs_args_0|inputs_kwargs_(?:hidden_states|input_ids))"
)
AGAIN = "run model_addition_debugger_context(model, debug_path=..., use_repr=False)"


@dataclass(frozen=True)
class ProgramOutputs:
    """Arrays by a program's names; `names` is the map that has these, if the format tells.

    It can hold the steps `only`, all if empty. Numbers that were printed are `half_unit` off, and
    NaN where one was not; `sums` are those of all numbers. `stated` is what the file states.
    """

    outputs: Mapping[str, Array]
    names: str = ""
    only: tuple[str, ...] = ()
    half_unit: float = 0.0
    sums: Mapping[str, float] = field(default_factory=dict)
    stated: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> Array | None:
        """The token ids among the arrays, if there are any."""
        return next((self.outputs[name] for name in IDS if name in self.outputs), None)


def read_source(path: Path) -> ProgramOutputs:
    """Read a file or a folder of another program; which one is seen from its content."""
    if path.is_dir():
        if arrays := npy_arrays(path):
            return ProgramOutputs(arrays)
        if saved := logits_files(path):
            return _logits(saved[0])
        return ProgramOutputs(debugger_outputs(path), "transformers")
    with reading(path), open_file(path) as file:
        head = file.read(HEAD)
    if head[4:9] == b"\0\0\0\0{":  # the length before it may look like the start of other formats
        return _tensors(path)
    if head.startswith(b"PK"):
        return ProgramOutputs(npz_arrays(path))
    if head.startswith(b"\x80"):
        raise pickled(path)
    if head.startswith(b"\x93NUMPY"):
        raise RefimplError(
            f"{path} is one array, whose step is not known",
            "arrays by name: .npz, safetensors, or a folder of .npy files named after the steps",
            f"put it into a folder as {LOGITS}.npy, and pass the folder",
        )
    if logits_files(path):
        return _logits(path)
    if is_log(head):
        tensors, sums = logged(path)
        return ProgramOutputs(tensors, "ggml", half_unit=HALF_UNIT, sums=sums)
    return _tensors(path)


def _tensors(path: Path) -> ProgramOutputs:
    """The tensors of a safetensors file, and what it states."""
    file = SafetensorsFile(path)
    return ProgramOutputs(file.arrays, stated=file.metadata)


def _logits(path: Path) -> ProgramOutputs:
    """The logits that llama-debug saved."""
    return ProgramOutputs(saved_logits(path), "ggml", (LOGITS,))


def debugger_outputs(folder: Path) -> Mapping[str, Array]:
    """The tensors of transformers' debugger by the modules' names, and ids; read when asked for."""
    files: dict[str, Path] = {}
    with reading(folder, "a readable folder"):
        paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        if found := DUMPED.fullmatch(path.stem):
            module, what = found["module"], found["what"]
            if what == "outputs_logits":
                files[f"{module}.{LOGITS}" if module else LOGITS] = path
            elif module:
                files[module + (INPUT if what.startswith("inputs") else "")] = path
            elif what.startswith("inputs"):
                files["input_ids"] = path
    if not files:
        raise RefimplError(
            f"{folder} holds no outputs of modules",
            "files such as LlamaForCausalLM.model.norm_outputs.safetensors, or .npy files",
            AGAIN,
        )
    return BlockWeights({name: partial(_data, path) for name, path in files.items()})


def _data(path: Path) -> Array:
    """The tensor of a file of transformers' debugger."""
    arrays = SafetensorsFile(path).arrays
    if "data" not in arrays:
        raise RefimplError(
            f"{path} holds {listed(list(arrays)) or 'no tensor'}",
            "one tensor named data, as transformers writes",
            AGAIN,
        )
    return np.array(arrays["data"])  # a copy, as mapped files are few


def pickled(path: Path) -> RefimplError:
    """The error for a file that only unpickling reads, which runs what the file says."""
    return RefimplError(
        f"{path} holds pickled objects, and reading them runs code that the file chooses",
        "arrays: .npz, .npy or safetensors",
        "rewrite it where it was written: docs/how-to/candidates.md has the ten lines",
    )


def npz_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an `.npz` file."""
    with _whole(path), open_file(path) as file, ZipFile(file) as archive:
        members, arrays = archive.infolist(), dict[str, Array]()
        if any(PurePosixPath(x.filename).name == PICKLE for x in members):
            raise pickled(path)
        limit = min(MOST, max(SMALL, DENSEST * os.fstat(file.fileno()).st_size))
        _require(path, sum(x.file_size for x in members), limit)
        for x in members:
            with archive.open(x) as member:
                arrays[x.filename.removesuffix(".npy")] = _array(member, x.filename)
        return arrays


def npy_arrays(folder: Path) -> dict[str, Array]:
    """The arrays of the `.npy` files of a folder, by the names of the files."""
    arrays, left = dict[str, Array](), MOST
    with reading(folder, "a readable folder"):
        paths = sorted(folder.glob("*.npy"))
    for path in paths:
        with _whole(path), open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            _require(folder, MOST - left + size, MOST)
            arrays[path.stem], left = _array(file, path.name), left - size
    return arrays


def _require(path: Path, size: int, limit: int) -> None:
    """Refuse more bytes of arrays than there is room for."""
    if size > limit:
        raise RefimplError(
            f"the arrays of {path} take {size / MIB:,.0f} MiB",
            f"at most {limit / MIB:,.0f} MiB: {DENSEST} times an archive, {MOST / MIB:,.0f} in all",
            "save fewer arrays, or save them as safetensors",
        )


def _array(file: IO[bytes], name: str) -> Array:
    """The array of a `.npy` file; ValueError if it is none, or needs unpickling."""
    x: Array = np.lib.format.read_array(file, allow_pickle=False)
    if x.dtype.name not in NAMES and x.dtype != PAIR:
        raise ValueError(f"{name}: dtype {x.dtype}")
    return x.view(ml_dtypes.bfloat16) if x.dtype == PAIR else x


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn whatever zipfile, NumPy and the system raise for a damaged file into our error."""
    try:
        with reading(path):
            yield
    except RefimplError:
        raise
    except Exception as error:  # zlib.error, EOFError, RuntimeError, even tokenize.TokenError
        raise RefimplError(
            f"{path} holds no whole arrays ({error})",
            f"what numpy.savez or numpy.save writes, of {', '.join(sorted(NAMES))}",
            "save the arrays again, each of numbers",
        ) from error
