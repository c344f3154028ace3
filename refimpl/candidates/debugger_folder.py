"""The folder that transformers' `model_addition_debugger_context(..., use_repr=False)` writes."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from refimpl.candidates.names import INPUT, LOGITS
from refimpl.errors import RefimplError, listed
from refimpl.loading.files.file_reading import reading
from refimpl.model.ops import Array
from refimpl.oracle.judging.candidate_arrays import stored_arrays

DATA = "data"  # the tensor of a dumped file
IDS = "input_ids"
DUMPED = re.compile(
    r"[^.]+?(?:\.(?P<module>.+?))?_"
    r"(?P<what>outputs(?:_0)?|outputs_logits|inputs_args_0|inputs_kwargs_(?:hidden_states|input_ids))"
)
_AGAIN = "run model_addition_debugger_context(model, debug_path=..., use_repr=False)"


class DumpFolder(Mapping[str, Array]):
    """The tensors of a folder by the modules' names, and the token ids; read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        with reading(folder, "a readable folder"):
            paths = sorted(folder.glob("*.safetensors"))
        for path in paths:
            if found := DUMPED.fullmatch(path.stem):
                module, what = found["module"], found["what"]
                if what == "outputs_logits":
                    self.files[f"{module}.{LOGITS}" if module else LOGITS] = path
                elif module:
                    self.files[module + (INPUT if what.startswith("inputs") else "")] = path
                elif what.startswith("inputs"):
                    self.files[IDS] = path
        if not self.files:
            raise RefimplError(
                f"{folder} holds no outputs of modules",
                "files such as LlamaForCausalLM.model.norm_outputs.safetensors, or .npy files",
                _AGAIN,
            )

    def __getitem__(self, name: str) -> Array:
        arrays = stored_arrays(self.files[name])
        if DATA not in arrays:
            raise RefimplError(
                f"{self.files[name]} holds {listed(list(arrays)) or 'no tensor'}",
                f"one tensor named {DATA}, as transformers writes",
                _AGAIN,
            )
        return np.array(arrays[DATA])  # a copy, as mapped files are few

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)
