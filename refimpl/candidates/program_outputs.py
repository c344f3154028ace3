"""What another program wrote, recognised by its content: arrays by the program's own names."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from refimpl.candidates.arrays import npy_arrays, npz_arrays, pickled
from refimpl.candidates.debugger_folder import DumpFolder
from refimpl.candidates.llama_cpp import HALF_UNIT, is_log, logged, logits_files, saved_logits
from refimpl.candidates.names import LOGITS
from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import reading
from refimpl.loading.files.safetensors_file import SafetensorsFile
from refimpl.model.ops import Array
from refimpl.oracle.judging.candidate_arrays import stored_arrays
from refimpl.storage.file_system import open_file

IDS = (
    "token_ids",
    "input_ids",
    "inp_tokens",
    "embed.hook_in",
)  # names of token ids beside the arrays
HEAD = 1 << 16  # bytes that tell what a file is


@dataclass(frozen=True)
class ProgramOutputs:
    """What another program wrote.

    Args:
        outputs: Arrays by the program's names; read when asked for, if they are many files.
        names: The map that has these names, if the format tells; "" if it does not.
        only: The steps that this format can hold, as patterns; all if empty.
        half_unit: Half a unit in the last decimal of numbers that were printed, where NaN stands
            for one that was not; 0 if they are exact.
        sums: Of printed arrays, the sum of all numbers, by name.
        stated: What the file states of the computation.
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
    """Read a file or a folder of another program; which one is seen from its content.

    Raises:
        RefimplError: No such file, one that cannot be read, or one that holds no arrays.
    """
    if path.is_dir():
        return _folder(path)
    with reading(path), open_file(path) as file:
        head = file.read(HEAD)
    if head[4:9] == b"\0\0\0\0{":  # the length before it may look like the start of other formats
        return ProgramOutputs(stored_arrays(path), stated=SafetensorsFile(path).metadata)
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
    return ProgramOutputs(stored_arrays(path), stated=SafetensorsFile(path).metadata)


def _folder(path: Path) -> ProgramOutputs:
    """What a folder holds."""
    if arrays := npy_arrays(path):
        return ProgramOutputs(arrays)
    if saved := logits_files(path):
        return _logits(saved[0])
    return ProgramOutputs(DumpFolder(path), "transformers")


def _logits(path: Path) -> ProgramOutputs:
    """The logits that llama-debug saved."""
    return ProgramOutputs(saved_logits(path), "ggml", (LOGITS,))
