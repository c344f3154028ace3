"""Formats that refimpl refuses by name, each with a way to convert it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refimpl.errors import RefimplError
from refimpl.loading.files.file_reading import reading
from refimpl.model.weight import STORED_DTYPES
from refimpl.running.file_system import open_file

_PICKLE = (
    "convert it if you trust it, because pickles run code (transformers: "
    "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
)
_GGUF = "refimpl convert FILE.gguf -o FOLDER, and pass FOLDER"
QUANTISATION = "quantization_config"
CONVERTIBLE = ("fp8", "mxfp4")  # methods
_OTHER = "convert it (transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW))"
CONVERSIONS = dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _PICKLE) | {".gguf": _GGUF}
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
